#!/usr/bin/python3
"""`faultline bench ready`: every way to get pages is there, each page was right, and what does not depend on time is true."""
import json
import math
import os
import subprocess
import tempfile

from api_client import skip

BINARY = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")
SOURCE = os.environ.get("FAULTLINE_SOURCE") or skip("FAULTLINE_SOURCE does not name the source directory")
RUN_S = 300

WORKLOAD = "redis-get"
ALONE = ["present", "mmap", "loop", "sorted"]
OURS = ["faults", "eager", "stream_address", "stream_loop"]


def bench(directory, *arguments, code=0):
    done = subprocess.run([BINARY, "bench", "ready", "--traces", f"{SOURCE}/traces", "--dir", directory, "--rounds", "1", *arguments],
                          capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=RUN_S, check=False)
    assert done.returncode == code, f"{arguments}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr


def median(sides, side, metric):
    return sides[side][metric]["median"]


def check_case(case, alone):
    assert case["skipped"] is None, case["skipped"]
    sides = {side["id"]: side["metrics"] for side in case["sides"]}
    expected = alone + OURS
    assert set(sides) in (set(expected), {*expected, "stream"}, {*expected, "stream", "packed"}), sides.keys()
    assert ("packed" in sides) == ("stream" in sides and not case["id"].startswith("warm:")), sides.keys()
    for side, metrics in sides.items():
        for metric, series in metrics.items():
            assert all(math.isfinite(value) for value in series["rounds"]), (side, metric)
    # What a list lacks is demanded, and nothing else is where the guest waits for all of it.
    assert median(sides, "eager", "late") == 0
    assert median(sides, "eager", "missing") <= median(sides, "eager", "faults") <= median(sides, "eager", "missing") + 8
    for side in ("stream_address", "stream_loop"):
        late, missing, faults = (median(sides, side, metric) for metric in ("late", "missing", "faults"))
        assert missing <= faults <= late + missing + 8, (side, late, missing, faults)
    assert median(sides, "faults", "faults") > median(sides, "eager", "faults")


def test_report(directory):
    stdout, _ = bench(directory, "--json", "--only", f"warm,cold,slow_300,{WORKLOAD}")
    group, = json.loads(stdout)["groups"]
    cases = {case["id"]: case for case in group["cases"]}
    assert list(cases) == [f"{name}:{WORKLOAD}" for name in ("warm", "cold", "slow_300")], cases.keys()
    check_case(cases[f"warm:{WORKLOAD}"], ALONE)
    if cases[f"cold:{WORKLOAD}"]["skipped"]:
        print(f"cold: {cases[f'cold:{WORKLOAD}']['skipped']}")
    else:
        check_case(cases[f"cold:{WORKLOAD}"], ALONE)
    check_case(cases[f"slow_300:{WORKLOAD}"], ["present"])
    assert os.listdir(directory) == []


def test_bad_options(directory):
    _, stderr = bench(directory, "--only", "nonsense", code=2)
    assert "'nonsense'" in stderr and "slow_300" in stderr and WORKLOAD in stderr, stderr
    _, stderr = bench(directory, "--traces", "/nonexistent", code=1)
    assert "/nonexistent" in stderr, stderr
    assert os.listdir(directory) == []


def main():
    if os.geteuid():
        skip("needs root, for userfaultfd")
    for test in (test_report, test_bad_options):
        print(test.__name__, flush=True)
        # On a disk, as a memory image of 1 GiB is made, with holes.
        with tempfile.TemporaryDirectory(prefix="faultline-test-ready.", dir="/var/tmp") as directory:
            test(directory)


if __name__ == "__main__":
    main()
