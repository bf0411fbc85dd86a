#!/usr/bin/python3
"""A real guest, QEMU's under KVM, as forks of the server: its memory is right, and the kernel sees what it touches, prefetched or not."""
import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import unittest

import kvm
from vm import answer, guest, qemu
from vm.server import Server, finish

PRELOAD = os.environ["FAULTLINE_PRELOAD"]
# One vCPU: the kernel that runs this is emulated itself, mostly with one CPU, and two would wait for each other.
HARDWARE = qemu.Hardware("kvm", "host", 256 << 20, cpus=1)


def correlation(one, other):
    """Of the ranks of what is in both lists."""
    common = set(one) & set(other)
    ranks = {page: rank for rank, page in enumerate(page for page in one if page in common)}
    others = {page: rank for rank, page in enumerate(page for page in other if page in common)}
    n = len(common)
    return 1 - 6 * sum((ranks[page] - others[page]) ** 2 for page in common) / (n * (n * n - 1))


class RealGuest(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="faultline-qemu-kvm-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)

    def template(self):
        image = guest.prepare()
        with qemu.boot(image, self.directory, HARDWARE) as vm:
            vm.wait_booted()
            return qemu.snapshot(vm, image, self.directory)

    def run_fork(self, template, name, *options):
        """A fork that has answered; its memory has been compared after that, and after what is returned of it."""
        socket = self.server.run("fork", "create", "base", "--id", name, "--record", *options).strip()
        with qemu.fork(template, self.directory, name, preload=PRELOAD, uffd_socket=socket) as vm:
            vm.prepare_incoming()
            if options:
                finish(self.server.wait(name, "prefetched"))
            vm.resume(template.state)
            self.assertEqual(vm.ask("answer 7"), f"7 {answer.answer(7)}")
            self.server.run("fork", "ready", name)
            shown = self.server.show(name)
            rows = kvm.kernel_list(self.server, name)
            self.assertEqual(vm.ask("checksum"), template.guest.checksum)
            self.assertEqual(vm.said(), "")
        self.assertEqual(shown["observed"]["events_lost"], 0)
        return shown, rows

    def test_forks_are_seen(self):
        template = self.template()
        self.server = self.stack.enter_context(Server(kvm.BINARY, self.directory, "--observe", "require"))
        self.server.run("template", "add", "base", "--memory", template.memory)
        first, rows = self.run_fork(template, "first")
        self.assertEqual(first["observe_tier"], "fentry")
        # What the loop was asked for, the kernel has seen; and beyond it what the devices' state brought and the guest touched then.
        touched = kvm.order_of(rows)
        self.assertEqual(len(set(touched)), len(touched))
        self.assertGreaterEqual(len(touched), first["recorded_pages"])
        self.assertGreaterEqual(first["observed"]["faults"], first["recorded_pages"])
        self.assertGreater(first["recorded_pages"], 1000)
        self.assertGreaterEqual(first["observed"]["vcpus"], 1)

        hot = self.directory / "hot"
        self.server.run("fork", "hot-list", "first", "--from", "kernel", "--format", "hpl2", "-o", hot)
        second, rows = self.run_fork(template, "second", "--prefetch", "eager", "--hot-list", hot)
        self.assertLess(second["faults"], first["faults"] / 4)
        # The loop saw next to nothing of this one; the kernel saw the prefetched pages touched, in an order like the first fork's.
        again = kvm.order_of(rows)
        self.assertGreater(len(set(again) & set(touched)), len(touched) / 2)
        self.assertGreater(correlation(touched, again), 0.5)
        print(f"{first['faults']} faults, {len(touched)} pages; prefetched {second['faults']} faults, {len(again)} pages, "
              f"rank correlation {correlation(touched, again):.2f}, with the order of addresses {correlation(touched, sorted(touched)):.2f}")
        self.assertTrue(template.intact())


if __name__ == "__main__":
    kvm.require_known_kernel()
    sys.exit(unittest.main(verbosity=2))
