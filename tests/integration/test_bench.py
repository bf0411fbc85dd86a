#!/usr/bin/python3
"""`faultline bench`: its figures are plausible against each other, it says what it can't tell, and it leaves nothing behind.

No figure is held against a time. Orderings are only those that are several times apart, and under a sanitizer there are none.
"""
import contextlib
import json
import math
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import uuid

from api_client import DEADLINE_S, skip, wait_for

BINARY = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")
SANITIZED = bool(os.environ.get("FAULTLINE_SANITIZE"))
CPUS = len(os.sched_getaffinity(0))
# All of a quick run, with a sanitizer and a busy machine.
RUN_S = 500

CASES = {
    "fault": ["one_pinned", "two_pinned", "four_pinned", "one_free", "two_free", "four_free"],
    "prefetch": ["scattered", "contiguous"],
    "idle": ["idle"],
    "fairness": ["at_once"],
    "observe": ["fault", "flood", "paced", "idle"],
}
LATENCIES = ["p50_us", "p90_us", "p99_us", "max_us"]


def bench(*arguments, code=0, **options):
    """Runs it to its end; what it wrote to stdout and stderr."""
    done = subprocess.run([BINARY, "bench", *arguments], capture_output=True, text=True, encoding="utf-8",
                          stdin=subprocess.DEVNULL, timeout=RUN_S, check=False, **options)
    assert done.returncode == code, f"{arguments}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr


def group_of(report, name):
    return next(g for g in report["groups"] if g["name"] == name)


def case_of(report, group, case):
    return next(c for c in group_of(report, group)["cases"] if c["id"] == case)


def median(case, side, metric):
    return next(s for s in case["sides"] if s["id"] == side)["metrics"][metric]["median"]


# ---- one run, looked at from all sides ----

def check_series(series, rounds, name):
    values = series["rounds"]
    assert len(values) == rounds, name
    assert all(isinstance(v, float) and math.isfinite(v) and v >= 0 for v in values), (name, values)
    five = [series[k] for k in ("min", "q1", "median", "q3", "max")]
    assert five == sorted(five) and five[0] == min(values) and five[4] == max(values), (name, series)


def check_side(side, rounds, name):
    assert side["metrics"], name
    for metric, series in side["metrics"].items():
        check_series(series, rounds, f"{name} {metric}")
    if "p50_us" in side["metrics"]:
        for place in range(rounds):
            row = [side["metrics"][m]["rounds"][place] for m in LATENCIES]
            assert row == sorted(row) and row[0] > 0, (name, row)
    if "total_ms" in side["metrics"]:
        total, parts = side["metrics"]["total_ms"], [side["metrics"][m] for m in ("there_ms", "touch_ms")]
        for place in range(rounds):
            assert math.isclose(total["rounds"][place], sum(p["rounds"][place] for p in parts), rel_tol=1e-4), name


def check_target(figure, name):
    if figure["target"] is None:
        assert figure["met"] is None, name
        return
    (kind, target), = figure["target"].items()
    assert kind in ("at_most", "at_least"), name
    expected = figure["value"] <= target if kind == "at_most" else figure["value"] >= target
    # The report rounds what it decides by.
    assert figure["met"] == expected or math.isclose(figure["value"], target, rel_tol=1e-4), (name, figure)


def check_ratio(case, ratio, rounds, name):
    of, to = (median(case, ratio[k], ratio["metric"]) for k in ("of", "to"))
    assert math.isclose(ratio["value"], of / to, rel_tol=1e-4), (name, ratio, of, to)
    check_series(ratio["rounds"], rounds, name)
    assert ratio["noise"] is None or ratio["noise"] >= 0, name
    assert isinstance(ratio["too_noisy"], bool), name
    check_target(ratio, name)


def check_case(case, rounds, name):
    if case["skipped"]:
        assert (CPUS < 2 and "CPU" in case["skipped"]) or "can be observed" in case["skipped"], case
        assert not case["sides"], case
        return
    assert len(case["sides"]) >= 2 and (case["ratios"] or case["limits"]), name
    for side in case["sides"]:
        check_side(side, rounds, f"{name} {side['id']}")
    for ratio in case["ratios"]:
        check_ratio(case, ratio, rounds, f"{name}: {ratio['label']}")
    for limit in case["limits"]:
        assert limit["value"] == median(case, limit["of"], limit["metric"]), limit
        check_target(limit, f"{name}: {limit['label']}")


def check_structure(report):
    assert report["rounds"] == 3 and report["quick"] is True
    assert (report["build"] == "sanitizer") == SANITIZED
    assert set(report["machine"]["cpus"]) == os.sched_getaffinity(0)
    assert [g["name"] for g in report["groups"]] == list(CASES)
    for group in report["groups"]:
        noise = group["noise"]
        assert 0 <= noise["other_load"] <= 1 and 0 <= noise["steal"] <= 1, noise
        assert noise["too_noisy"] == (noise["reason"] is not None), noise
        assert [c["id"] for c in group["cases"]] == CASES[group["name"]]
        for case in group["cases"]:
            check_case(case, report["rounds"], f"{group['name']} {case['id']}")


def check_best_floor(report):
    """Faultline is held against the best of the loops, whichever that was."""
    case = case_of(report, "fault", "one_pinned")
    loops = [s["id"] for s in case["sides"] if s["id"] in ("loop_guest", "loop_other", "loop_spinning")]
    assert len(loops) == (3 if CPUS > 1 else 1), loops
    for ratio in case["ratios"]:
        assert median(case, ratio["to"], ratio["metric"]) == min(median(case, s, ratio["metric"]) for s in loops)


def check_plausible(report):
    case = case_of(report, "fault", "one_pinned")
    for side in ("ours", "ours_written", "loop_guest"):
        # A page that is there takes a tenth of a microsecond, a fault of userfaultfd several switches of context.
        assert 5 * median(case, "present", "p50_us") < median(case, side, "p50_us"), side
    for side in case["sides"]:
        # Half of the touches took at least the median, one after the other.
        for p50, rate in zip(*(side["metrics"][m]["rounds"] for m in ("p50_us", "faults_per_s"))):
            assert rate <= 2.01e6 / p50, (side["id"], p50, rate)

    case = case_of(report, "prefetch", "scattered")
    for side in ("mmap", "present"):
        assert median(case, side, "there_ms") == 0
        assert 1.5 * median(case, side, "total_ms") < median(case, "read_one", "total_ms"), side
    for side in ("ours", "read_one", "mapped_one", "mapped_run"):
        assert median(case, side, "there_ms") > 0, side
    ours = next(s for s in case["sides"] if s["id"] == "ours")["metrics"]
    for server, client in zip(ours["server_ms"]["rounds"], ours["there_ms"]["rounds"]):
        assert 0 < server <= client, (server, client)

    fork = median(case_of(report, "idle", "idle"), "beside", "kib_per_fork")
    assert 0.1 < fork < 1024, fork
    flood = case_of(report, "observe", "flood")
    if not flood["skipped"]:
        observed = next(s for s in flood["sides"] if s["id"] == "on")["metrics"]
        # Each page is a fault, and so are the first touches that are not counted; each is an event that was seen or lost.
        assert all(seen >= 4 * 2048 for seen in observed["seen"]["rounds"]), observed
        assert all(lost <= seen for seen, lost in zip(observed["seen"]["rounds"], observed["lost"]["rounds"])), observed
    for side in case_of(report, "fairness", "at_once")["sides"]:
        metrics = side["metrics"]
        assert metrics["worst_to_median_p99"]["min"] >= 1, side
        assert metrics["worst_fork_p99_us"]["median"] >= metrics["median_fork_p99_us"]["median"], side


def test_report(directory):
    stdout, _ = bench("--quick", "--json", "--dir", directory)
    report = json.loads(stdout)
    check_structure(report)
    check_best_floor(report)
    if not SANITIZED:
        check_plausible(report)
    assert os.listdir(directory) == []


def test_text(directory):
    """For people: every side by name, every target with its mark; few rounds and odd builds are called so."""
    stdout, _ = bench("fairness", "prefetch", "fairness", "--quick", "--rounds", "1", "--dir", directory)
    for words in ("== prefetch", "== fairness", "one page a call, read from the file", "plain mmap of the image", "everything present",
                  "a bare loop for each fork", "≥ 1.8", "≤ 3", "A quick look", "Medians of 1 round "):
        assert words in stdout, (words, stdout)
    assert stdout.count("== fairness") == 1 and "== fault" not in stdout
    assert stdout.count("✓") + stdout.count("✗") == 4, stdout
    assert ("sanitizer build" in stdout) == SANITIZED
    assert "nan" not in stdout and "inf" not in stdout


# ---- a machine that is not as it should be ----

@contextlib.contextmanager
def hogs():
    """Something else that wants every CPU."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CPUS)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_noise_is_told(directory):
    arguments = ["idle", "--forks", "10", "--quick", "--rounds", "1", "--dir", directory]
    with hogs():
        report = json.loads(bench(*arguments, "--json")[0])
        stdout, _ = bench(*arguments)
    noise = group_of(report, "idle")["noise"]
    assert noise["too_noisy"] and noise["other_load"] > 0.1 and "other processes" in noise["reason"], noise
    assert "Too noisy to tell: while idle was measured, other processes used" in stdout, stdout
    marked = [line for line in stdout.splitlines() if "✓" in line or "✗" in line]
    assert len(marked) == 3 and all(line.endswith("?") for line in marked), stdout


def test_one_cpu(directory):
    """Rows that need another CPU are left out, and say so."""
    cpu = min(os.sched_getaffinity(0))
    stdout, _ = bench("fault", "--quick", "--rounds", "1", "--json", "--dir", directory,
                      preexec_fn=lambda: os.sched_setaffinity(0, [cpu]))
    report = json.loads(stdout)
    assert report["machine"]["cpus"] == [cpu]
    case = case_of(report, "fault", "one_pinned")
    assert {s["id"] for s in case["sides"]} >= {"ours", "loop_guest"}
    assert not {s["id"] for s in case["sides"]} & {"loop_other", "loop_spinning"}
    assert "no bare loop on another CPU, asleep, as this process may run on one CPU only" in case["details"]
    for name in ("two_pinned", "four_pinned"):
        case = case_of(report, "fault", name)
        assert "two CPUs" in case["skipped"] and case["sides"] == case["ratios"] == []
    assert case_of(report, "fault", "two_free")["skipped"] is None


def test_few_open_files(directory):
    """As many idle forks as the limit on open files allows, and the number is told."""
    stdout, _ = bench("idle", "--quick", "--rounds", "1", "--json", "--dir", directory,
                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (240, 240)))
    details = case_of(json.loads(stdout), "idle", "idle")["details"]
    assert details.startswith("10 idle forks") and "the limit on open files allows no more (100 were wanted)" in details, details


def test_bad_options():
    for arguments, words in [
            (["nonsense"], ["'nonsense'", "fairness"]),
            (["fault", "nonsense"], ["'nonsense'"]),
            (["--rounds", "0"], ["--rounds", "1 to 99", "'0'"]),
            (["--rounds", "100"], ["--rounds", "'100'"]),
            (["--rounds", "-3"], ["--rounds", "'-3'"]),
            (["--rounds", "9x"], ["--rounds", "'9x'"]),
            (["--rounds", ""], ["--rounds", "''"]),
            (["--rounds"], ["--rounds", "needs a value"]),
            (["--forks", "0"], ["--forks", "'0'"]),
            (["--forks", "20001"], ["--forks", "20000"]),
            (["--forks", "1e3"], ["--forks", "'1e3'"]),
            (["--dir", ""], ["--dir"]),
            (["--quick=yes"], ["--quick", "no value"]),
            (["--round", "3"], ["--round", "--rounds"])]:
        stdout, stderr = bench(*arguments, code=2)
        assert stdout == "" and all(w in stderr for w in words), (arguments, stderr)
    _, stderr = bench("--json", "--rounds", "0", code=2)
    assert json.loads(stderr)["error"]["code"] == "usage"


def test_bad_places(directory):
    for place, words in [("/no/such/directory", ["/no/such/directory", "--dir"]), ("/dev/null", ["/dev/null", "--dir"]),
                         (os.path.join(directory, "x" * 200, "y" * 200), ["too long", "--dir"])]:
        stdout, stderr = bench("--quick", "--dir", place, code=1)
        assert stdout == "" and all(w in stderr for w in words), (place, stderr)


# ---- nothing is left behind ----

class Marked:
    """A bench that runs, in a directory of its own, and whose processes can be told by their environment."""

    def __init__(self, directory, *arguments):
        self.directory = directory
        self.mark = f"FAULTLINE_TEST_MARK={uuid.uuid4()}"
        name, value = self.mark.split("=")
        self.process = subprocess.Popen([BINARY, "bench", *arguments, "--json", "--dir", directory],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env=dict(os.environ, **{name: value}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def others(self):
        """The ids of its processes but the first."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    if int(pid) != self.process.pid and self.mark.encode() in f.read().split(b"\0"):
                        found.append(int(pid))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def has_named(self, name):
        for pid in self.others():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/comm", encoding="ascii") as f:
                    if f.read() == name + "\n":
                        return True
        return False

    def await_others(self, count):
        wait_for(lambda: len(self.others()) >= count or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def server(self):
        for pid in self.others():
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if b"serve" in f.read().split(b"\0"):
                    return pid
        return None

    def end(self):
        stdout, stderr = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, stdout.decode(), stderr.decode()

    def check_gone(self):
        wait_for(lambda: not self.others())


def test_signals(directory):
    """At any moment: with a server alone, with guests, in the middle of connecting a thousand."""
    for arguments, processes, number in [(["fault"], 1, signal.SIGINT), (["fault"], 3, signal.SIGINT),
                                         (["prefetch"], 2, signal.SIGTERM), (["idle"], 30, signal.SIGINT),
                                         (["fairness"], 20, signal.SIGHUP), (["observe"], 2, signal.SIGTERM)]:
        with Marked(directory, *arguments) as run:
            run.await_others(processes)
            run.process.send_signal(number)
            code, stdout, _ = run.end()
            assert code == -number and stdout == "", (arguments, code, stdout)
            assert run.others() == [] and os.listdir(directory) == [], arguments


def test_interrupt_at_once(directory):
    """While images are written and the server comes up."""
    for _ in range(3):
        with Marked(directory, "fault") as run:
            wait_for(lambda: os.listdir(directory))
            run.process.send_signal(signal.SIGINT)
            assert run.end()[0] == -signal.SIGINT
            assert run.others() == [] and os.listdir(directory) == []


def test_killed(directory):
    """Nobody can clean up files then, but no process stays."""
    with Marked(directory, "fairness") as run:
        run.await_others(20)
        run.process.kill()
        assert run.end()[0] == -signal.SIGKILL
        run.check_gone()
    subprocess.run(["rm", "-r", "--", *(os.path.join(directory, name) for name in os.listdir(directory))], check=True)


def test_server_killed(directory):
    """Guests that wait for their pages would hang."""
    for arguments in (["fault"], ["fairness"]):
        with Marked(directory, *arguments, "--rounds", "99") as run:
            run.await_others(3)
            wait_for(run.server)
            os.kill(run.server(), signal.SIGKILL)
            code, stdout, stderr = run.end()
            message = json.loads(stderr.splitlines()[-1])["error"]["message"]
            assert code == 1 and stdout == "" and "server" in message and arguments[0] in message, (code, stderr)
            assert run.others() == [] and os.listdir(directory) == []


def spoil_image(directory):
    """Through a mapping, of which the kernel tells nobody; only the file's time shows it, to those who look at that."""
    path, = [os.path.join(place, "fairness") for place, _, names in os.walk(directory) if "fairness" in names]
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as image:
        image[:] = bytes(len(image))


def test_wrong_bytes(directory):
    """A bare loop passes on whatever the image has: only comparing the pages finds it. A server refuses its next fork, at least."""
    codes = []
    while "wrong_bytes" not in codes:
        assert len(codes) < 20, codes
        with Marked(directory, "fairness", "--rounds", "99") as run:
            wait_for(lambda run=run: run.has_named("the bare loops"))
            spoil_image(directory)
            code, stdout, stderr = run.end()
            error = json.loads(stderr.splitlines()[-1])["error"]
            assert code == 1 and stdout == "" and error["code"] in ("wrong_bytes", "template_changed"), (code, stderr)
            assert run.others() == [] and os.listdir(directory) == []
            codes.append(error["code"])


def main():
    if os.geteuid():
        skip("needs root, for userfaultfd")
    wanted = sys.argv[1:]
    for name, test in list(globals().items()):
        if not name.startswith("test_") or (wanted and name not in wanted):
            continue
        print(name, flush=True)
        if test.__code__.co_argcount == 0:
            test()
            continue
        with tempfile.TemporaryDirectory(prefix="faultline-test-bench.") as directory:
            test(directory)


if __name__ == "__main__":
    main()
