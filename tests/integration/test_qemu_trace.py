#!/usr/bin/python3
"""A trace recorded from a real guest is replayed, and holds what the guest's fork asked its page server for."""
import csv
import io
import os
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(os.environ["FAULTLINE_SOURCE"], "tools/trace"))]
import replay_tools as tools  # noqa: E402
import recorder  # noqa: E402
from vm import answer, guest, qemu  # noqa: E402
from vm.server import Server  # noqa: E402

PRELOAD, PLUGIN = os.environ["FAULTLINE_PRELOAD"], os.environ["FAULTLINE_TRACE"]
COMMAND = "python3 /srv/answer.py 6"
PAGES = qemu.MEMORY_SIZE // tools.PAGE


def setUpModule():
    """One snapshot, and two recordings of its forks."""
    global scratch, temporary, template, traces
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="faultline-trace-"))
    unittest.addModuleCleanup(shutil.rmtree, scratch)
    temporary = scratch / "tmp"
    temporary.mkdir()
    template = recorder.make_template(guest.prepare(), scratch, COMMAND, 1)
    traces = []
    for run in (1, 2):
        path = scratch / f"answer.{run}.csv.gz"
        count, said = recorder.record(template, scratch, f"run{run}", COMMAND, PLUGIN, path)
        recorder.write_bitmap(template, scratch / f"answer.{run}.nonzero.gz")
        assert said == answer.answer(6), said
        assert count == len(tools.pages_of(path)), count
        traces.append(path)


class Recorded(unittest.TestCase):
    def test_the_image_is_as_it_was(self):
        self.assertTrue(template.intact())

    def test_each_page_once_in_all_kinds(self):
        touches = tools.touches_of(traces[0])
        pages = [touch["page"] for touch in touches]
        self.assertEqual(len(pages), len(set(pages)))
        self.assertLess(max(pages), PAGES)
        self.assertLessEqual({touch["vcpu"] for touch in touches}, {0, 1})
        self.assertEqual({touch["kind"] for touch in touches}, set("rwx"))
        self.assertEqual([touch["ns"] for touch in touches], sorted(touch["ns"] for touch in touches))
        # Starting Python takes hundreds of millions of instructions, and a few thousand pages.
        self.assertGreater(max(touch["instructions"] for touch in touches), 10**8)
        self.assertGreater(len(pages), 3000)

    def test_the_bitmap_says_which_pages_had_data(self):
        bits = recorder.nonzero_bitmap(template.memory)
        self.assertEqual(len(bits), PAGES // 8)
        with open(template.memory, "rb") as memory:
            for page in range(0, PAGES, 97):
                memory.seek(page * tools.PAGE)
                self.assertEqual(bits[page // 8] >> (7 - page % 8) & 1, any(memory.read(tools.PAGE)), f"page {page}")

    def test_two_forks_of_one_snapshot_touch_much_the_same(self):
        first, second = (set(tools.pages_of(path)) for path in traces)
        self.assertGreater(len(first & second), 0.8 * len(first | second))

    def test_it_is_replayed(self):
        hot_list = scratch / "list"
        tools.replay(traces[0], "--write-hot-list", hot_list, temporary=temporary)
        for options in ([], ["--hot-list", hot_list], ["--plain"]):
            figures = tools.replay(traces[1], *options, temporary=temporary)
            self.assertEqual(figures["image_pages"], PAGES)
            self.assertEqual(figures["runs"][0]["checked_pages"], len(tools.pages_of(traces[1])))

    def test_a_page_server_is_asked_for_the_same_pages(self):
        """Besides what forks do differently, it also sees page-table walks, which a trace has not."""
        with Server(tools.BINARY, scratch) as server:
            server.run("template", "add", "base", "--memory", template.memory)
            socket = server.run("fork", "create", "base", "--id", "f", "--record").strip()
            with qemu.fork(template, scratch, "served", preload=PRELOAD, uffd_socket=socket) as vm:
                vm.prepare_incoming()
                vm.resume(template.state)
                recorder.ask(vm, COMMAND)
                served = server.run("fork", "hot-list", "f", "-o", "-", "--format", "csv")
        asked = {int(row["offset"]) // tools.PAGE for row in csv.DictReader(io.StringIO(served))}
        recorded = set(tools.pages_of(traces[0])) | set(tools.pages_of(traces[1]))
        self.assertGreater(len(asked & recorded), 0.8 * len(asked))


if __name__ == "__main__":
    tools.require_root()
    unittest.main(verbosity=2)
