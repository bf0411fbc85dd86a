#!/usr/bin/python3
"""The tiny VMM tells the truth: its guest does what the script says, and the server agrees with its counts."""
import subprocess
import sys
import tempfile
import unittest

import kvm

PAGES = kvm.ServedTest.PAGES


class WithoutServer(kvm.ServedTest):
    def check(self, script, pages, *options):
        truth = kvm.run_vmm(self.image, script, *options)
        self.assertEqual(truth.end["wrong"], 0)
        self.assertEqual(truth.end["touches"], sum(line.split()[1] in ("r", "w", "x") for line in script))
        self.assertEqual(truth.end["pages"], pages)
        return truth

    def test_one_vcpu_touches_in_the_scripts_order(self):
        order = kvm.shuffled(PAGES)
        truth = self.check(kvm.deal(order), PAGES)
        self.assertEqual([touch["page"] for touch in truth.touches], order)
        self.assertEqual([touch["kind"] for touch in truth.touches], list("rwx" * PAGES)[:PAGES])
        self.assert_times(truth)

    def assert_times(self, truth):
        last = truth.end["start_ns"]
        for touch in truth.touches:
            self.assertLessEqual(last, touch["touch_ns"])
            self.assertLessEqual(touch["touch_ns"], touch["done_ns"])
            last = touch["touch_ns"]
        self.assertLessEqual(last, truth.end["end_ns"])

    def test_vcpus_that_wait_keep_the_order(self):
        order = kvm.shuffled(PAGES)
        for wait, options in (("spin", []), ("spin", ["--irqchip"]), ("halt", ["--irqchip"])):
            for vcpus in (2, 3):
                with self.subTest(wait=wait, options=options, vcpus=vcpus):
                    truth = self.check(kvm.deal(order, vcpus, wait), PAGES, *options)
                    self.assertEqual([touch["page"] for touch in truth.touches], order)
                    self.assertEqual([touch["vcpu"] for touch in truth.touches], [i % vcpus for i in range(PAGES)])

    def test_vcpus_that_do_not_wait_touch_all(self):
        truth = self.check(kvm.deal(kvm.shuffled(PAGES), 2), PAGES)
        self.assertEqual(len({touch["page"] for touch in truth.first}), PAGES)

    def test_two_slots(self):
        truth = self.check(kvm.deal(range(PAGES)), PAGES, "--split", "100")
        self.assertEqual([region["size"] for region in truth.start["regions"]], [100 * kvm.PAGE, (PAGES - 100) * kvm.PAGE])
        self.assertEqual([touch["region"] for touch in truth.touches], [0] * 100 + [1] * (PAGES - 100))

    def test_pages_touched_again_count_once(self):
        truth = self.check(kvm.deal([*range(50), *range(50)], kinds="wrx"), 50)
        self.assertEqual([touch["first"] for touch in truth.touches], [True] * 50 + [False] * 50)

    def test_times_are_waited_for(self):
        truth = self.check(["0 r 1", "0 at 3000000", "0 r 2", "0 pause 2000000", "0 r 3"], 3)
        first, second, third = (touch["touch_ns"] for touch in truth.touches)
        self.assertGreaterEqual(second - truth.end["start_ns"], 2_900_000)
        self.assertGreaterEqual(third - second, 1_900_000)
        self.assertLess(first, second)

    def test_a_guest_holds_until_it_is_told(self):
        process = kvm.start_vmm(self.image, ["0 r 1", "0 hold", "0 r 2"], stdin=subprocess.PIPE)
        process.stdout.readline()
        self.assertIn('"event":"hold"', process.stdout.readline())
        process.stdin.write("go\n")
        process.stdin.flush()
        output, errors = process.communicate(timeout=kvm.TIMEOUT)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(output.count('"touch":'), 2)

    def test_bad_scripts_are_refused(self):
        for script, word in (
            (["9 r 1"], "no vCPU"), (["0 y 1"], "can't 'y'"), (["0 r -1"], "'-1' is none"), (["0 r 1 2"], "one word too many"),
            (["0 r"], "wants a number"), (["0 spin 0 1", "0 r 1"], "another vCPU"), (["# nothing"], "touches a page"),
            (["0 spin 1 2", "0 r 1", "1 r 2"], "has only 1"), (["0 halt 1 1", "0 r 1", "1 r 2"], "needs --irqchip"),
        ):  # fmt: skip
            with self.subTest(script=script), tempfile.NamedTemporaryFile("w") as file:
                file.write("\n".join(script) + "\n")
                file.flush()
                done = subprocess.run(
                    [kvm.TINY_VMM, self.image, "--script", file.name], capture_output=True, check=False, text=True, timeout=kvm.TIMEOUT
                )  # fmt: skip
                self.assertEqual(done.returncode, 2)
                self.assertIn(word, done.stderr)

    def test_pages_that_are_not_there_or_are_no_code_are_refused(self):
        with self.assertRaisesRegex(AssertionError, "has only"):
            kvm.run_vmm(self.image, [f"0 r {PAGES}"])
        zeros = self.directory / "zeros"
        zeros.write_bytes(bytes(kvm.PAGE))
        with self.assertRaisesRegex(AssertionError, "page 0 .* can't be run"):
            kvm.run_vmm(zeros, ["0 x 0"])


class Served(kvm.ServedTest):
    def test_every_page_comes_from_the_server_once(self):
        for irqchip in ([], ["--irqchip"]):
            for vcpus in (1, 2):
                with self.subTest(irqchip=irqchip, vcpus=vcpus):
                    fork, socket = self.create()
                    truth = kvm.run_vmm(self.image, kvm.deal(kvm.shuffled(PAGES), vcpus), *irqchip, socket=socket)
                    self.assertEqual(truth.end["absent"], PAGES)
                    shown = kvm.show_gone(self.server, fork)
                    self.assertEqual((shown["faults"], shown["copied_pages"]), (PAGES, PAGES))

    def test_prefetched_pages_are_there(self):
        order = kvm.shuffled(PAGES)
        hot = self.write_list(order[::2])
        fork, socket = self.create("--prefetch", "eager", "--hot-list", hot)
        truth = kvm.run_vmm(self.image, kvm.deal(order), "--wait-prefetched", socket=socket)
        self.assertEqual({touch["page"] for touch in truth.first if touch["present"]}, set(order[::2]))
        self.assertEqual(truth.end["absent"], PAGES // 2)
        shown = kvm.show_gone(self.server, fork)
        self.assertEqual((shown["faults"], shown["prefetched_pages"]), (PAGES // 2, PAGES // 2))


if __name__ == "__main__":
    kvm.require()
    sys.exit(unittest.main(verbosity=2))
