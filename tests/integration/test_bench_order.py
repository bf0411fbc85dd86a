#!/usr/bin/python3
"""`faultline bench order`: its report is whole, and what does not depend on time is true.

With one vCPU, whoever records sees the guest's own order; the kernel sees every page that was touched, and no other, whoever waits for whom; and the
second generation's loop sees only what its list lacked.
"""
import glob
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from api_client import DEADLINE_S, skip, wait_for

BINARY = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")
SOURCE = os.environ.get("FAULTLINE_SOURCE") or skip("FAULTLINE_SOURCE does not name the source directory")
RUN_S = 900

WORKLOAD = "redis-get"
SITUATIONS = ["one", "halt_uneven", "second", "long_life"]
STREAMED = {"late", "unused", "missing", "faults", "added_ms"}
ORDERS = {"rank", "area", "lacking", "extra"}


def bench(directory, *arguments, code=0, binary=BINARY):
    done = subprocess.run([binary, "bench", "order", "--traces", f"{SOURCE}/traces", "--dir", directory, *arguments],
                          capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=RUN_S,
                          check=False)
    assert done.returncode == code, f"{arguments}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr


def metrics_of(case, side):
    found = [s["metrics"] for s in case["sides"] if s["id"] == side]
    return found[0] if found else None


def check_case(case):
    for side in case["sides"]:
        name = f"{case['id']} {side['id']}"
        metrics = side["metrics"]
        for metric, series in metrics.items():
            assert all(math.isfinite(v) for v in series["rounds"]) and series["rounds"], (name, metric)
            low = -1 if metric in ("rank", "below_best") else -math.inf if metric == "added_ms" else 0
            high = 1 if metric in ("rank", "area") else math.inf
            assert low <= series["min"] <= series["median"] <= series["max"] <= high, (name, metric, series)
        if side["id"] not in ("none", "truth"):
            assert ORDERS <= set(metrics), (name, metrics.keys())
        assert ("late" in metrics) == ("missing" in metrics) == ("unused" in metrics), name
        if "late" in metrics:
            for late, missing, faults in zip(*(metrics[m]["rounds"] for m in ("late", "missing", "faults"))):
                assert late <= faults <= late + missing + 8, (name, late, missing, faults)
    assert metrics_of(case, "none")["faults"]["min"] > 0
    assert metrics_of(case, "truth")["missing"]["max"] == metrics_of(case, "truth")["unused"]["max"] == 0


def check_targets(case, observed):
    labels = {limit["metric"]: limit for limit in case["limits"]}
    assert set(labels) == ({"rank", "below_best"} if observed else set()), case["id"]
    for limit in case["limits"]:
        (kind, target), = limit["target"].items()
        assert limit["met"] == (limit["value"] >= target if kind == "at_least" else limit["value"] <= target), limit


def check_same_set(metrics, name):
    assert metrics["lacking"]["max"] == metrics["extra"]["max"] == 0, (name, metrics["lacking"], metrics["extra"])


def check_truth(cases, observed):
    """What is so whatever the time."""
    one = cases["one"]
    for side in ("loop", "raw", "corrected", "voted_1", "voted_3") if observed else ("loop",):
        metrics = metrics_of(one, side)
        assert metrics["rank"]["min"] == 1 and metrics["area"]["max"] == 0, (side, metrics)
        check_same_set(metrics, f"one {side}")
    assert metrics_of(one, "address")["rank"]["median"] < 0.7
    if not observed:
        return
    for situation in ("one", "halt_uneven", "second"):
        for side in ("raw", "corrected", "voted_1"):
            check_same_set(metrics_of(cases[situation], side), f"{situation} {side}")
    # The loop alone learns nothing of what was prefetched; the list to which its pages are added keeps what nobody touches any more.
    second = cases["second"]
    assert metrics_of(second, "loop")["lacking"]["min"] > 0
    assert metrics_of(second, "appended")["extra"]["min"] > metrics_of(second, "raw")["extra"]["max"]
    # What a fork touches after its start is in the loop's list, and in the kernel's it isn't.
    long_life = cases["long_life"]
    assert metrics_of(long_life, "loop")["extra"]["min"] > 10000
    check_same_set(metrics_of(long_life, "voted_1"), "long_life")


def test_report(directory):
    stdout, _ = bench(directory, "--quick", "--json", "--only", ",".join([*SITUATIONS, WORKLOAD]))
    report = json.loads(stdout)
    group, = report["groups"]
    assert group["name"] == "order"
    assert [case["id"] for case in group["cases"]] == [f"{situation}:{WORKLOAD}" for situation in SITUATIONS]
    cases = {case["id"].split(":")[0]: case for case in group["cases"]}
    observed = metrics_of(cases["one"], "raw") is not None
    for case in cases.values():
        assert case["skipped"] is None
        check_case(case)
        check_targets(case, observed)
        assert ("nothing observes" in case["details"]) == (not observed), case["details"]
    check_truth(cases, observed)
    assert os.listdir(directory) == []
    if not observed:
        print("the kernel's orders were not looked at: nothing can be observed here")


def test_markdown(directory):
    stdout, _ = bench(directory, "--quick", "--markdown", "--only", f"one,{WORKLOAD}")
    assert f"| `one` | {WORKLOAD} |" in stdout and "### `one`: one vCPU" in stdout, stdout
    rows = [line for line in stdout.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {9}, rows


def test_bad_options(directory):
    _, stderr = bench(directory, "--only", "nonsense", code=2)
    assert "'nonsense'" in stderr and "spin_uneven" in stderr and WORKLOAD in stderr, stderr
    _, stderr = bench(directory, "--json", "--markdown", code=2)
    assert "--markdown" in stderr, stderr
    _, stderr = bench(directory, "--traces", "/nonexistent", code=1)
    assert "/nonexistent" in stderr and "--traces" in stderr, stderr
    assert os.listdir(directory) == []


def check_kvm_not_run(directory, reason, *arguments, binary=BINARY):
    stdout, _ = bench(directory, "--quick", "--json", "--only", f"kvm,kvm_second,{WORKLOAD}", *arguments, binary=binary)
    cases = json.loads(stdout)["groups"][0]["cases"]
    assert [case["id"] for case in cases] == [f"kvm:{WORKLOAD}", f"kvm_second:{WORKLOAD}"], cases
    for case in cases:
        assert case["skipped"] and re.search(reason, case["skipped"]) and not case["sides"], case


def test_kvm_not_run(directory):
    """Guests under KVM that can't be run are said to be so; how it is where they can is tests/vm's."""
    no_device = "/dev/kvm: |"
    # A VMM that has a fork, and fails before it connects.
    check_kvm_not_run(directory, f"{no_device}could not run the guest", "--tiny-vmm", "/bin/false")
    _, stderr = bench(directory, "--only", f"kvm,{WORKLOAD}", "--tiny-vmm", f"{directory}/nothing", code=1)
    assert f"{directory}/nothing" in stderr and "--tiny-vmm" in stderr, stderr
    # One that isn't wanted need not be there.
    bench(directory, "--quick", "--only", f"one,{WORKLOAD}", "--tiny-vmm", f"{directory}/nothing")
    assert os.listdir(directory) == []
    named = os.environ.pop("FAULTLINE_TINY_VMM", None)
    with tempfile.TemporaryDirectory(prefix="faultline-test-order.", dir="/var/tmp") as elsewhere:
        alone = shutil.copy(BINARY, elsewhere)
        check_kvm_not_run(directory, f"{no_device}there is no faultline-tiny-vmm .*--tiny-vmm", binary=alone)
    if named:
        os.environ["FAULTLINE_TINY_VMM"] = named


def test_interrupt(directory):
    """While its server runs and a guest comes and goes."""
    with subprocess.Popen([BINARY, "bench", "order", "--traces", f"{SOURCE}/traces", "--dir", directory, "--json"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        try:
            wait_for(lambda: run.poll() is not None or glob.glob(f"{directory}/*/order/run/control.sock"))
            run.send_signal(signal.SIGINT)
            stdout, stderr = run.communicate(timeout=DEADLINE_S)
        finally:
            run.kill()
    assert run.returncode == -signal.SIGINT and stdout == b"", (run.returncode, stderr)
    assert os.listdir(directory) == []


def main():
    if os.geteuid():
        skip("needs root, for userfaultfd")
    wanted = sys.argv[1:]
    for name, test in list(globals().items()):
        if not name.startswith("test_") or (wanted and name not in wanted):
            continue
        print(name, flush=True)
        # On a disk, as a memory image of 1 GiB is made, with holes.
        with tempfile.TemporaryDirectory(prefix="faultline-test-order.", dir="/var/tmp") as directory:
            test(directory)


if __name__ == "__main__":
    main()
