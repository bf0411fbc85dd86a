#!/usr/bin/python3
"""Real QEMU guests as forks of the server: their memory is right, whoever dies."""
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["FAULTLINE_SOURCE"]) / "tools"))
from vm import answer, guest, qemu  # noqa: E402
from vm.server import Server, finish  # noqa: E402

BINARY, PRELOAD = os.environ["FAULTLINE"], os.environ["FAULTLINE_PRELOAD"]
SILENCE = 3  # seconds in which a guest that stands still must not answer; a healthy one answers in one
DEADLINE = 60  # seconds for anything that must happen
MOST_FAULTS = 5000  # fewer than a guest's checksum needs
BALLOONED = 300 << 20  # bytes that a guest keeps when the balloon takes the rest


def setUpModule():
    """One snapshot for all: forks leave it as it is."""
    global template, scratch
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="faultline-qemu-"))
    unittest.addModuleCleanup(shutil.rmtree, scratch)
    image = guest.prepare()
    with qemu.boot(image, scratch) as vm:
        vm.wait_booted()
        template = qemu.snapshot(vm, image, scratch)


class Forks(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.server = self.stack.enter_context(Server(BINARY, self.directory))
        self.server.run("template", "add", "base", "--memory", template.memory)

    def tearDown(self):
        self.assertTrue(template.intact(), "the template's image has changed")

    def fork(self, name, *options):
        """A fork whose guest runs."""
        vm = self.start(name, *options)
        vm.resume(template.state)
        return vm

    def start(self, name, *options):
        socket = self.server.run("fork", "create", "base", "--id", name, *options).strip()
        vm = self.stack.enter_context(qemu.fork(template, self.directory, name, preload=PRELOAD, uffd_socket=socket))
        vm.prepare_incoming()
        return vm

    def check(self, vm, number=17):
        self.assertEqual(vm.ask(f"answer {number}"), f"{number} {answer.answer(number)}")
        self.assertEqual(vm.ask("checksum"), template.guest.checksum)
        self.assertEqual(vm.said(), "")

    def at_once(self, vms):
        """Checks guests that run at the same time."""
        failures = []

        def check(vm, number):
            try:
                self.check(vm, number)
            except Exception as error:  # pylint: disable=broad-except # raised again below
                failures.append(error)

        threads = [threading.Thread(target=check, args=(vm, number)) for number, vm in enumerate(vms)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def await_faults(self, name, count):
        """Until the fork has had so many. The server has no event for that, and each look at it takes its time."""
        deadline = time.monotonic() + DEADLINE
        while self.server.show(name)["faults"] < count:
            self.assertLess(time.monotonic(), deadline, f"{name} has had fewer than {count} faults")

    def test_a_recorded_fork_makes_the_next_one_fault_less(self):
        recorded = self.fork("recorded", "--record")
        self.assertEqual(recorded.ask("answer 1"), f"1 {answer.answer(1)}")
        self.server.run("fork", "ready", "recorded")
        before = self.server.show("recorded")
        self.assertGreater(before["recorded_pages"], 1000)
        self.check(recorded)
        hot_list = self.directory / "list"
        self.server.run("fork", "hot-list", "recorded", "-o", hot_list)

        prefetched = self.start("prefetched", "--prefetch", "eager", "--hot-list", hot_list)
        finish(self.server.wait("prefetched", "prefetched"))
        # The list has what the loop served, and what the kernel saw besides.
        self.assertGreaterEqual(self.server.show("prefetched")["prefetched_pages"], before["recorded_pages"])
        prefetched.resume(template.state)
        self.assertEqual(prefetched.ask("answer 1"), f"1 {answer.answer(1)}")
        self.assertLess(self.server.show("prefetched")["faults"], before["faults"] / 4)
        self.check(prefetched)

    def test_several_at_once(self):
        self.at_once([self.fork(f"f{number}", *(["--record"] if number % 2 else [])) for number in range(4)])
        for number in range(4):
            shown = self.server.show(f"f{number}")
            self.assertEqual(shown["state"], "connected")
            self.assertGreater(shown["copied_pages"], MOST_FAULTS)

    def test_a_vm_killed_while_faulting_leaves_the_others_alone(self):
        victim, other = self.fork("victim"), self.fork("other")
        victim.serial.write("checksum")
        other.serial.write("checksum")
        self.await_faults("victim", 1000)
        victim.stop()
        finish(self.server.wait("victim", "gone"))
        self.assertLess(self.server.show("victim")["faults"], MOST_FAULTS)
        self.assertEqual(other.serial.read(), f"checksum {template.guest.checksum}")
        self.check(other)
        self.check(self.fork("next"))
        self.server.run("fork", "remove", "victim")

    def test_stopping_the_server_ends_its_vms(self):
        idle, busy = self.fork("idle"), self.fork("busy")
        busy.serial.write("checksum")
        self.await_faults("busy", 1000)
        self.assertEqual(self.server.stop(), 0, self.server.said())
        for vm in (idle, busy):
            self.assertEqual(vm.process.wait(DEADLINE), -signal.SIGKILL)

    def test_a_guest_whose_server_was_killed_stands_still(self):
        vm = self.fork("orphan")
        self.server.process.kill()
        self.server.process.wait()
        with self.assertRaisesRegex(qemu.VmError, "said nothing"):
            vm.ask("checksum", timeout=SILENCE)
        self.assertIsNone(vm.process.poll(), "QEMU has ended")
        self.assertIn("the page server has hung up", vm.said())

    def test_a_balloon_gives_memory_back_and_takes_it_again(self):
        vm = self.fork("balloon")
        self.check(vm)
        self.blow(vm, BALLOONED)
        removed = self.server.show("balloon")["removed_pages"]
        self.assertGreaterEqual(removed, (qemu.MEMORY_SIZE - BALLOONED) // 4096 * 9 // 10)
        self.check(vm, 18)
        self.blow(vm, qemu.MEMORY_SIZE)
        self.check(vm, 19)

    def blow(self, vm, size):
        vm.qmp.execute("balloon", value=size)
        vm.qmp.wait_event("BALLOON_CHANGE", lambda data: data["actual"] == size)


class Fallback(unittest.TestCase):
    def test_without_a_server_the_image_is_mapped(self):
        missing = scratch / "no-server.uffd"
        with qemu.fork(template, scratch, "fallback", preload=PRELOAD, uffd_socket=missing) as vm:
            vm.prepare_incoming()
            vm.resume(template.state)
            self.assertEqual(vm.ask("checksum"), template.guest.checksum)
            self.assertEqual(vm.ask("answer 5"), f"5 {answer.answer(5)}")
            self.assertIn(f"faultline-preload: No page server listens at {missing} (No such file or directory)", vm.said())
        self.assertTrue(template.intact())


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: userfaultfd for a VM's memory needs root")
        sys.exit(77)
    unittest.main(verbosity=2)
