#!/usr/bin/python3
"""`faultline profile` of guests under KVM that map their image themselves: each page once, in the guest's own order."""
import json
import subprocess
import sys
import tempfile
import unittest

import kvm

PAGES = 300
TOUCHED = 200


class Profile(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.image = kvm.make_image(f"{self.directory}/image", PAGES)
        self.script = f"{self.directory}/script"
        self.list = f"{self.directory}/list.json"

    def profile(self, script, *options):
        """The report, and the list's pages."""
        with open(self.script, "w", encoding="utf-8") as file:
            file.write("\n".join(script) + "\n")
        done = subprocess.run(
            [kvm.BINARY, "profile", "--json", "--output", self.list, "--format", "json", "--memory", self.image, "--settle", "0", "--wait", "--",
             "sh", "-c", '"$@" >&2', "sh", kvm.TINY_VMM, "--quiet", "--script", self.script, *options, self.image],
            capture_output=True, check=False, text=True, timeout=kvm.TIMEOUT)  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.list, encoding="utf-8") as file:
            return json.loads(done.stdout), json.load(file)["pages"]

    def test_order_is_the_guests(self):
        order = kvm.shuffled(PAGES)[:TOUCHED]
        for options in ([], ["--irqchip"]):
            with self.subTest(options=options):
                report, pages = self.profile(kvm.deal(order), *options)
                self.assertEqual([page["offset"] // kvm.PAGE for page in pages], order)
                # The kernel's own setting, not a stand-in: it was changed, and is as it was.
                self.assertEqual((report["fault_around"]["bytes"], report["fault_around"]["set"]), (kvm.PAGE, True), report)
                with open("/sys/kernel/debug/fault_around_bytes", encoding="utf-8") as setting:
                    self.assertEqual(int(setting.read()), 65536)

    def test_vcpus_that_wait_for_each_other(self):
        order = kvm.shuffled(PAGES)[:TOUCHED]
        _, pages = self.profile(kvm.deal(order, 2, "halt"), "--irqchip")
        listed = [page["offset"] // kvm.PAGE for page in pages]
        self.assertEqual(sorted(listed), sorted(order))
        # Between a vCPU's clock and that of the one which wakes it are some microseconds, and one that KVM lets wait without a sleep is not seen to
        # be woken: neighbours may change places, on a loaded machine those further off.
        moves = sum((listed.index(page) - place) ** 2 for place, page in enumerate(order))
        self.assertGreaterEqual(1 - 6 * moves / (TOUCHED * (TOUCHED**2 - 1)), 0.98)


if __name__ == "__main__":
    kvm.require_known_kernel()
    sys.exit(unittest.main(verbosity=2))
