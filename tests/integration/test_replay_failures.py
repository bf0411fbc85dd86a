#!/usr/bin/python3
"""Replays that can't go well: broken traces, wrong pages, servers that stop, die, lie or are not there. Each ends, and says why."""
import gzip
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import replay_tools as tools  # noqa: E402
from replay_tools import HEADER, PAGE, replay  # noqa: E402
from vm.server import Server  # noqa: E402

TOUCHES = 300
DEADLINE = 60  # seconds for anything that must happen


def setUpModule():
    global scratch, temporary, trace, image
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="fl-replay-"))
    unittest.addModuleCleanup(shutil.rmtree, scratch)
    temporary = scratch / "tmp"
    temporary.mkdir()
    trace, image = tools.make_trace(scratch, touches=TOUCHES), scratch / "image"
    replay(trace, "--make-template", image, temporary=temporary)


class Failures(unittest.TestCase):
    def tearDown(self):
        self.assertEqual(os.listdir(temporary), [], "a replay has left something behind")

    def fails(self, *arguments, status=1, words=()):
        """The message, in which all WORDS must be."""
        return self.has_failed(tools.start(*arguments, temporary=temporary), status, words)

    def has_failed(self, process, status, words):
        exited, output, errors = tools.finish(process)
        self.assertEqual(exited, status, f"{process.args} said: {output}{errors}")
        self.assertEqual(output, "")
        for word in words:
            self.assertIn(word, errors)
        return errors


class Files(Failures):
    def broken(self, data, *words):
        path = scratch / "broken.csv.gz"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        self.fails(path, words=[str(path), *words])

    def test_broken_traces_are_named_with_the_line(self):
        self.broken("", "empty")
        self.broken("10,2,7,0,x\n", "line 1", "ns,instructions,page,vcpu,kind")
        self.broken(HEADER + "1,2,3,0,r\n-1,2,4,0,r\n", "line 3", "-1")
        self.broken(HEADER + "5,2,3,0,r\n4,3,4,0,r\n", "line 3", "sort")
        self.broken(HEADER + "5,99999999999999999999,3,0,r\n", "line 2", "instructions")
        self.broken(gzip.compress((HEADER + "1,2,3,0,r\n" * 3).encode()), "line 3", "page 3")
        self.broken(gzip.compress((HEADER + "1,2,3,0,r\n").encode())[:-9], "cut off")
        self.broken(os.urandom(4096).replace(b"\n", b" "), "line 1")

    def test_missing_files_are_named(self):
        self.fails(scratch / "nothing.csv.gz", words=["nothing.csv.gz", "No such file"])
        self.fails(scratch, words=[str(scratch), "neither a file nor a pipe"])
        (scratch / "alone.csv").write_text(trace.read_text())
        self.fails(scratch / "alone.csv", words=["alone.nonzero.gz", "--nonzero"])

    def test_a_bitmap_of_another_trace(self):
        (scratch / "short.gz").write_bytes(gzip.compress(b"\xff" * 8))
        self.fails(trace, "--nonzero", scratch / "short.gz", words=["line 3", "page 389", "64 pages"])
        (scratch / "empty.gz").write_bytes(gzip.compress(b""))
        self.fails(trace, "--nonzero", scratch / "empty.gz", words=["empty.gz", "empty"])

    def test_a_template_of_another_size(self):
        (scratch / "small").write_bytes(bytes(PAGE))
        self.fails(trace, "--template", scratch / "small", words=["small", "4096 bytes", "--make-template"])
        self.fails(trace, "--template", scratch / "nothing", words=["nothing", "No such file"])

    def test_lists_that_do_not_fit(self):
        (scratch / "bad.hpl1").write_bytes(b"HPL1\x01\x07\x00")
        self.fails(trace, "--hot-list", scratch / "bad.hpl1", words=["region 7"])
        (scratch / "broken.hpl1").write_bytes(b"HPL1\x05\x00")
        self.fails(trace, "--hot-list", scratch / "broken.hpl1", words=["broken.hpl1"])

    def test_files_that_can_not_be_written(self):
        for option in ("--make-template", "--write-hot-list"):
            self.fails(trace, option, scratch / "no-directory" / "file", words=["no-directory"])
        self.fails(trace, "--plain", "--touches", scratch / "no-directory" / "file", words=["no-directory"])

    def test_options_that_make_no_sense(self):
        for options in (
            ["--plain", "--present"], ["--serve", "--run-dir", "x"], ["--plain", "--hot-list", "x"], ["--plain", "--record", "-o", "x"],
            ["--record"], ["-o", "x"], ["--prefetch", "eager"], ["--prefetch", "stream"], ["--prefetch", "off", "--hot-list", "x"], ["--no-wait"],
            ["--runs", "0"], ["--runs", "x"], ["--runs", "-1"], ["--pin", "x"], ["--pin", "0,"], ["--pin", "9999"], ["--seed", "-1"],
            ["--vcpus", "two"], ["--socket", "x"], ["--present", "--cold"], ["--plain", "--cpus", "0"], ["--format", "hpl3"],
            ["--make-template", "x", "--write-hot-list", "y"],
        ):  # fmt: skip
            with self.subTest(options=options):
                self.fails(trace, *options, status=2, words=["faultline replay --help"])

    def test_errors_as_json(self):
        errors = self.fails(scratch / "nothing.csv.gz", "--json")
        self.assertEqual(json.loads(errors)["error"]["code"], "bad_file")


class WrongPages(Failures):
    """An image in which one page is not what it should be. The page is found, whoever brings it."""

    def changed(self, change):
        copy = scratch / "changed"
        content = bytearray(image.read_bytes())
        change(content)
        copy.write_bytes(content)
        return copy

    def everywhere(self, copy, *words):
        for options in ([], ["--plain"], ["--plain", "--vcpus", "one"]):
            with self.subTest(options=options):
                self.fails(trace, "--template", copy, *options, words=["run 1", *words])

    def test_one_bit(self):
        page = tools.touches_of(trace)[-1]["page"]

        def flip(content):
            content[page * PAGE + 1234] ^= 0x10

        self.everywhere(self.changed(flip), f"page {page} (offset 0x{page * PAGE:x})", "from byte 1234 on", "no page of this image")

    def test_a_page_of_zeros(self):
        def clear(content):
            content[: PAGE] = bytes(PAGE)

        self.everywhere(self.changed(clear), "page 0 ", "all zeros")

    def test_a_page_in_another_ones_place(self):
        def swap(content):
            content[:PAGE] = content[2 * PAGE : 3 * PAGE]

        self.everywhere(self.changed(swap), "page 0 ", "the bytes of page 2")

    def test_data_where_there_was_none(self):
        page = tools.touches_of(trace)[1]["page"]
        self.assertEqual(image.read_bytes()[page * PAGE :][:PAGE], bytes(PAGE))

        def fill(content):
            content[page * PAGE + PAGE - 1] = 1

        self.everywhere(self.changed(fill), f"page {page} ", "from byte 4095 on", "should be 0x0000000000000000")

    def test_an_image_of_another_seed(self):
        self.fails(trace, "--template", image, "--seed", "2", words=["other pages are wrong as well"])

    def test_a_prefetched_page_that_is_never_touched(self):
        pages = set(tools.pages_of(trace))
        page = next(page for page in range(1024) if page not in pages)
        hot_list = scratch / "list.csv"
        hot_list.write_text(f"region,offset,first_touch_ns,seen\n0,{page * PAGE},0,1\n")

        def flip(content):
            content[page * PAGE + 8] ^= 1

        self.fails(trace, "--template", self.changed(flip), "--hot-list", hot_list, words=[f"page {page} ", "from byte 8 on"])


class Servers(Failures):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        self.server = Server(tools.BINARY, self.directory)
        self.addCleanup(self.server.__exit__)

    def slow_fork(self, inject):
        """A fork of an image whose every page takes its time, so that there is a middle to stop in."""
        self.server.run("template", "add", "slow", "--memory", image, "--inject", inject)
        return self.server.run("fork", "create", "slow", "--id", "f").strip()

    def start_slow(self):
        """A replay that is under way; it would go on for seconds."""
        process = tools.start(trace, "--socket", self.slow_fork("delay=50ms"), "--template", image, temporary=temporary)
        deadline = time.monotonic() + DEADLINE
        while self.server.show("f")["faults"] < 5:
            self.assertLess(time.monotonic(), deadline, "the replay does not begin")
            self.assertIsNone(process.poll(), "the replay has ended")
        return process

    def test_a_server_that_is_killed(self):
        process = self.start_slow()
        self.server.process.kill()
        self.server.process.wait()
        self.has_failed(process, 1, ["the page server hung up after", f"of {TOUCHES} touches", "page "])

    def test_a_server_that_stops_takes_the_guest_along(self):
        process = self.start_slow()
        self.assertEqual(self.server.stop(), 0, self.server.said())
        errors = self.has_failed(process, 1, [])
        self.assertTrue("the guest was killed" in errors or "the page server hung up" in errors, errors)

    def test_a_page_that_can_not_be_read(self):
        page = tools.touches_of(trace)[150]["page"]
        socket = self.slow_fork(f"error={page * PAGE}+{PAGE}")
        errors = self.fails(trace, "--socket", socket, "--template", image)
        self.assertTrue(f"page {page} raised SIGBUS" in errors or "the guest was killed" in errors, errors)

    def test_a_socket_that_was_used_before(self):
        socket = self.slow_fork("delay=0ms")
        replay(trace, "--socket", socket, "--template", image, temporary=temporary)
        errors = self.fails(trace, "--socket", socket, "--template", image, status=3)
        self.assertIn(socket, errors)

    def test_a_run_directory_without_a_server(self):
        self.fails(trace, "--run-dir", self.directory / "nobody", status=3, words=["nobody", "no faultline server"])

    def test_an_interruption_leaves_nothing_behind(self):
        process = self.start_slow()
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.has_failed(process, 130, []), "")

    def test_an_interruption_of_one_with_a_server_of_its_own(self):
        process = tools.start(trace, "--runs", "10000", temporary=temporary)
        deadline = time.monotonic() + DEADLINE
        while not list(temporary.glob("*/run/*.uffd")):
            self.assertLess(time.monotonic(), deadline, "the replay does not begin")
            self.assertIsNone(process.poll(), "the replay has ended")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(self.has_failed(process, 143, []), "")


class OtherServers(Failures):
    def check_hang_up(self, served):
        path = scratch / f"other{served}.sock"
        server = tools.OtherServer(path, image, most=served)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            # The userfaultfd is still open here: without a look at the connection the guest would hang.
            errors = self.fails(trace, "--socket", path, "--template", image, "--vcpus", "one", words=[f"of {TOUCHES} touches"])
            after = int(re.search(r"the page server hung up after (\d+) of", errors)[1])
            # The last page is there, but the guest may not have woken up yet.
            self.assertIn(after, (served, max(served - 1, 0)))
            page = tools.touches_of(trace)[after]["page"]
            self.assertIn(f"before page {page} (vCPU ", errors)
        finally:
            thread.join()
            server.close()

    def test_a_server_that_hangs_up_at_once(self):
        self.check_hang_up(0)

    def test_a_server_that_hangs_up_in_the_middle(self):
        self.check_hang_up(137)

    def test_nobody_listens(self):
        self.fails(trace, "--socket", scratch / "nobody.sock", "--template", image, status=3, words=["nobody.sock"])


if __name__ == "__main__":
    tools.require_root()
    unittest.main(verbosity=2)
