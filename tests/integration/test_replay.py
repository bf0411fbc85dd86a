#!/usr/bin/python3
"""Replays of real guests' traces: every page is right, by a server with and without prefetch and by none, and the figures add up."""
import csv
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import replay_tools as tools  # noqa: E402
from replay_tools import SOURCE, replay  # noqa: E402
from vm.server import Server  # noqa: E402

TRACES = SOURCE / "traces"
WORKLOADS = ("gcc-compile", "python-import", "redis-get")
LENGTHS_MS = {"gcc-compile": 125, "python-import": 172, "redis-get": 160}  # of run 1, as traces/README.md says
SLACK_NS = 50000
# ThreadSanitizer keeps books on the guest's memory in memory of its own, which faults, and has locks to sleep on.
SANITIZER_FAULTS = os.environ.get("FAULTLINE_SANITIZE") == "thread"


def setUpModule():
    global scratch, temporary
    # On a disk, for what is about the page cache.
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="fl-replay-", dir="/var/tmp"))
    unittest.addModuleCleanup(shutil.rmtree, scratch)
    temporary = scratch / "tmp"
    temporary.mkdir()


class Replay(unittest.TestCase):
    def tearDown(self):
        self.assertEqual(os.listdir(temporary), [], "a replay has left something behind")

    def replay(self, *arguments):
        """All that is so in every replay that goes well."""
        figures = replay(*arguments, temporary=temporary)
        touches = tools.touches_of(figures["trace"])
        for run in figures["runs"]:
            self.assertEqual(run["wrong_pages"], 0)
            self.assertEqual(run["checked_pages"], len(touches))
            self.assertAlmostEqual(run["added_ms"], run["before_ms"] + run["run_ms"] - figures["length_ms"], places=3)
            # The last touch is never before its time; the trace's length is that.
            self.assertGreaterEqual(run["run_ms"], figures["length_ms"])
            for vcpu in run["vcpus"]:
                self.assertEqual(vcpu["touches"], sum(touch["vcpu"] == vcpu["vcpu"] for touch in touches))
                self.check_percentiles(vcpu)
            self.check_percentiles(run)
            self.assertEqual(run["slow_touches"], sum(vcpu["slow_touches"] for vcpu in run["vcpus"]))
            self.assertAlmostEqual(run["stall_ms"], sum(vcpu["stall_ms"] for vcpu in run["vcpus"]), places=3)
        return figures

    def check_percentiles(self, figures):
        ordered = [figures[f"stall_{name}_us"] for name in ("p50", "p90", "p99", "max")]
        self.assertEqual(ordered, sorted(ordered))
        self.assertLessEqual(ordered[-1], figures["stall_ms"] * 1000 + 1e-6)


class RealTraces(Replay):
    """All six, by demand faults, and with the other run's list prefetched."""

    def check_trace(self, workload, run):
        trace, other = (TRACES / f"{workload}.{number}.csv.gz" for number in (run, 3 - run))
        image, hot_list = scratch / "image", scratch / "list"
        pages, listed = set(tools.pages_of(trace)), set(tools.pages_of(other))
        replay(trace, "--make-template", image, temporary=temporary)
        replay(other, "--write-hot-list", hot_list, temporary=temporary)

        demand = self.replay(trace, "--template", image)
        if run == 1:
            self.assertAlmostEqual(demand["length_ms"], LENGTHS_MS[workload], delta=1)
        served = demand["runs"][0]["server"]
        self.assertEqual(served["copied_pages"] + served["zeroed_pages"], len(pages))
        self.assertEqual(served["prefetched_pages"], 0)
        self.assertEqual(demand["runs"][0]["checked_unasked_pages"], 0)

        prefetched = self.replay(trace, "--template", image, "--hot-list", hot_list)
        served = prefetched["runs"][0]["server"]
        self.assertEqual(served["prefetched_pages"], len(listed))
        self.assertEqual(served["copied_pages"] + served["zeroed_pages"], len(pages - listed))
        self.assertEqual(prefetched["runs"][0]["checked_unasked_pages"], len(listed - pages))
        # A page that comes at the very moment may save a sleep, but no page that is there costs one.
        if not SANITIZER_FAULTS:
            self.assertLessEqual(prefetched["runs"][0]["faults"], len(pages - listed))
        image.unlink()


def add_trace_tests():
    for workload, run in itertools.product(WORKLOADS, (1, 2)):
        name = f"test_{workload.replace('-', '_')}_{run}"
        setattr(RealTraces, name, lambda self, workload=workload, run=run: self.check_trace(workload, run))


add_trace_tests()


class Ways(Replay):
    """One trace in every way there is, with an image that is made for each."""

    TRACE = TRACES / "redis-get.2.csv.gz"

    def test_plain(self):
        figures = self.replay(self.TRACE, "--plain")
        self.assertEqual(figures["memory"], "plain")
        self.assertIsNone(figures["runs"][0]["server"])
        # The kernel maps neighbours along, but this guest leaps, and writes.
        self.assertGreater(figures["runs"][0]["minor_faults"], 1000)

    def test_plain_cold(self):
        figures = self.replay(self.TRACE, "--plain", "--cold", "--runs", "2")
        self.assertTrue(figures["cold"])
        for run in figures["runs"]:
            self.assertGreater(run["faults"], 0, "no page had to be waited for")

    def test_cold_image_behind_a_server(self):
        figures = self.replay(self.TRACE, "--cold", "--runs", "2")
        for run in figures["runs"]:
            self.assertGreater(run["server"]["slow_faults"], 20, "no page had to be read from the disk")

    def test_present(self):
        figures = self.replay(self.TRACE, "--present")
        run = figures["runs"][0]
        self.assertTrue(SANITIZER_FAULTS or (run["faults"], run["minor_faults"]) == (0, 0), run)
        self.assertIsNone(run["server"])
        self.assertGreater(run["checked_unasked_pages"], 10000)

    def test_one_thread(self):
        figures = self.replay(self.TRACE, "--vcpus", "one")
        self.assertFalse(figures["crowded"])
        self.assertIsNone(figures["runs"][0]["vcpus"][0]["faults"])
        self.assertGreater(figures["runs"][0]["faults"], figures["touches"] // 2)

    def test_independent_vcpus(self):
        self.assertEqual(self.replay(self.TRACE, "--vcpus", "independent")["vcpus"], "independent")

    def test_prefetched_beside_the_guest(self):
        hot_list = scratch / "list.csv"
        replay(TRACES / "redis-get.1.csv.gz", "--write-hot-list", hot_list, "--format", "csv", temporary=temporary)
        figures = self.replay(self.TRACE, "--hot-list", hot_list, "--no-wait")
        self.assertFalse(figures["waited_for_prefetch"])
        self.assertGreater(figures["runs"][0]["server"]["prefetched_pages"], 0)

    def test_streamed_beside_the_guest(self):
        hot_list = scratch / "streamed.csv"
        replay(TRACES / "redis-get.1.csv.gz", "--write-hot-list", hot_list, "--format", "csv", temporary=temporary)
        figures = self.replay(self.TRACE, "--prefetch", "stream", "--hot-list", hot_list)
        self.assertEqual(figures["prefetch"], "stream")
        self.assertFalse(figures["waited_for_prefetch"])
        server = figures["runs"][0]["server"]
        stream = server["stream"]
        self.assertEqual(stream["planned"], len(tools.pages_of(TRACES / "redis-get.1.csv.gz")))
        self.assertEqual(stream["planned"], sum(stream[kind] for kind in (
            "prefetched", "late", "present", "removed", "skipped", "unreadable", "pending")))
        self.assertEqual(server["copied_pages"], stream["late"] - stream["late_supplied"] + stream["missing"])

    def test_a_recording_holds_what_was_touched(self):
        recorded = scratch / "recorded.csv"
        self.replay(self.TRACE, "--record", "-o", recorded, "--format", "csv")
        with open(recorded, encoding="ascii") as file:
            pages = [int(row["offset"]) // tools.PAGE for row in csv.DictReader(file)]
        self.assertEqual(sorted(pages), sorted(tools.pages_of(self.TRACE)))

    def test_a_list_of_a_trace_is_in_the_order_of_its_touches(self):
        hot_list = scratch / "order.csv"
        replay(self.TRACE, "--write-hot-list", hot_list, "--format", "csv", temporary=temporary)
        with open(hot_list, encoding="ascii") as file:
            pages = [int(row["offset"]) // tools.PAGE for row in csv.DictReader(file)]
        self.assertEqual(pages, tools.pages_of(self.TRACE))

    def test_a_server_that_runs_keeps_nothing(self):
        with tempfile.TemporaryDirectory(dir=scratch) as directory, Server(tools.BINARY, directory) as server:
            figures = self.replay(self.TRACE, "--run-dir", server.run_dir, "--runs", "2", "--vcpus", "one")
            self.assertEqual(figures["memory"], "run-dir")
            self.assertEqual(server.run("template", "list", "--json").strip(), '{"templates":[]}')
            self.assertEqual(server.run("fork", "list", "--json").strip(), '{"forks":[]}')
            self.assertEqual(server.stop(), 0)

    def test_runs_have_a_median_and_a_spread(self):
        trace = tools.make_trace(scratch)
        figures = self.replay(trace, "--runs", "5", "--plain")
        self.assertEqual(len(figures["runs"]), 5)
        for name, spread in figures["all_runs"].items():
            values = sorted(run[name] for run in figures["runs"])
            self.assertAlmostEqual(spread["min"], values[0])
            self.assertAlmostEqual(spread["median"], values[2])
            self.assertAlmostEqual(spread["max"], values[4])

    def test_more_vcpus_than_cpus_make_progress_and_are_told(self):
        trace = tools.make_trace(scratch, vcpus=6)
        figures = self.replay(trace, "--pin", str(min(os.sched_getaffinity(0))))
        self.assertTrue(figures["crowded"])
        self.assertEqual(len(figures["runs"][0]["vcpus"]), 6)
        process = tools.start(trace, "--pin", str(min(os.sched_getaffinity(0))), temporary=temporary)
        status, output, _ = tools.finish(process)
        self.assertEqual(status, 0)
        self.assertIn("more of them than CPUs", output)

    def test_the_table_says_the_same(self):
        trace = tools.make_trace(scratch)
        status, output, errors = tools.finish(tools.start(trace, "--runs", "2", temporary=temporary))
        self.assertEqual((status, errors), (0, ""))
        for words in ("300 touches", "4 MiB", "from a page server of its own", "run 2", "median", "vCPU 1",
                      "every byte of the 300 pages touched"):  # fmt: skip
            self.assertIn(words, output)

    def test_any_server_with_firecrackers_handshake(self):
        trace, image = tools.make_trace(scratch), scratch / "made.image"
        replay(trace, "--make-template", image, temporary=temporary)
        server = tools.OtherServer(scratch / "other.sock", image, most=10**6)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            figures = self.replay(trace, "--socket", scratch / "other.sock", "--template", image)
        finally:
            thread.join()
            server.close()
        self.assertEqual(server.served, 300)
        self.assertEqual(figures["memory"], "socket")

    def test_a_seed_gives_another_image(self):
        trace = tools.make_trace(scratch)
        images = [scratch / f"seed{seed}" for seed in (1, 2)]
        for seed, image in enumerate(images, 1):
            replay(trace, "--make-template", image, "--seed", seed, temporary=temporary)
        self.assertNotEqual(images[0].read_bytes(), images[1].read_bytes())
        self.replay(trace, "--plain", "--seed", "2", "--template", images[1])


class Clock(Replay):
    """Each touch's times, against what docs/traces.md says of them."""

    def times(self, *options):
        log = scratch / "touches.csv"
        trace = tools.make_trace(scratch, touches=900, step_ns=5000)
        figures = self.replay(trace, "--touches", log, *options)
        with open(log, encoding="ascii") as file:
            rows = [{key: value if key == "kind" else int(value) for key, value in row.items()} for row in csv.DictReader(file)]
        recorded = tools.touches_of(trace)
        self.assertEqual([row["page"] for row in rows], [touch["page"] for touch in recorded])
        for row, touch in zip(rows, recorded):
            expected = touch["ns"] * figures["length_ms"] * 1e6 / recorded[-1]["ns"]
            self.assertAlmostEqual(row["at_ns"], expected, delta=2)
            self.assertGreaterEqual(row["started_ns"], row["at_ns"])
            self.assertGreaterEqual(row["ended_ns"], row["started_ns"])
        return rows

    def check_own_lag(self, rows):
        """A thread that was late once stays so."""
        lag = 0
        for row in rows:
            self.assertGreaterEqual(row["started_ns"], row["at_ns"] + lag)
            lag = max(lag, row["ended_ns"] - row["at_ns"])

    def vcpus(self, rows):
        return [[row for row in rows if row["vcpu"] == vcpu] for vcpu in sorted({row["vcpu"] for row in rows})]

    def test_vcpus_wait_for_each_other(self):
        self.check_waiting(self.times())

    def test_halted_vcpus_are_woken_by_each_other(self):
        self.check_waiting(self.times("--vcpus", "halting"))

    def check_waiting(self, rows):
        for own in self.vcpus(rows):
            self.check_own_lag(own)
        ended, before = 0, 0
        for row in rows:
            while rows[before]["at_ns"] + SLACK_NS <= row["at_ns"]:
                ended = max(ended, rows[before]["ended_ns"])
                before += 1
            self.assertGreaterEqual(row["started_ns"], ended)
        self.assertGreater(before, 100)

    def test_idle_vcpus_touch_when_they_are_due(self):
        for own in self.vcpus(self.times("--vcpus", "independent", "--pace", "idle")):
            for row, after in itertools.pairwise(own):
                self.assertGreaterEqual(row["started_ns"], row["at_ns"])
                self.assertGreaterEqual(after["started_ns"], row["ended_ns"])

    def test_computing_vcpus_need_their_time_of_a_cpu(self):
        cpu = min(os.sched_getaffinity(0))
        rows = self.times("--vcpus", "independent", "--pace", "compute", "--pin", str(cpu))
        own = self.vcpus(rows)
        self.assertEqual(len(own), 2)
        # On one CPU, both need what they need of it, so the last one ends after the sum.
        self.assertGreaterEqual(max(row["ended_ns"] for row in rows), 0.99 * sum(row[-1]["at_ns"] for row in own))

    def test_touches_are_spread_over_more_vcpus(self):
        trace = tools.make_trace(scratch, touches=900, step_ns=5000)
        figures = replay(trace, "--vcpus", "independent", "--pace", "idle", "--spread", "8", temporary=temporary)
        run, = figures["runs"]
        self.assertEqual(run["wrong_pages"], 0)
        self.assertEqual(run["checked_pages"], 900)
        touches = [vcpu["touches"] for vcpu in run["vcpus"]]
        self.assertEqual((len(touches), sum(touches)), (8, 900))
        self.assertTrue(all(50 < count < 200 for count in touches), touches)

    def test_independent_vcpus_have_each_their_own_lag(self):
        for own in self.vcpus(self.times("--vcpus", "independent")):
            self.check_own_lag(own)

    def test_one_thread_has_one_lag(self):
        rows = self.times("--vcpus", "one")
        self.check_own_lag(rows)
        self.assertTrue(all(a["ended_ns"] <= b["started_ns"] for a, b in zip(rows, rows[1:])))


if __name__ == "__main__":
    tools.require_root()
    unittest.main(verbosity=2)
