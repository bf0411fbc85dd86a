#!/usr/bin/python3
"""What `faultline doctor` says of this machine, held against other sources, and how it says it."""
import contextlib
import fcntl
import os
import platform
import pty
import re
import resource
import select
import struct
import subprocess
import termios

from api_client import DEADLINE_S, PAGE, PAGES, Server, make_image
from doctor_runs import CHECKS, Unavailable, check_shape, processes_of_session, run_checks
from fake_vmm import FakeVmm


def read_text(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read().strip()
    except OSError:
        return None


def this_machine(place):
    report = place.doctor()
    version = report["kernel_version"]["found"]
    assert platform.release() in version and platform.machine() in version, version
    allowed = os.sched_getaffinity(0)
    report.expect("cpus", "ok" if len(allowed) == os.cpu_count() else "degraded", found=str(len(allowed)))
    report.expect("main_loop", "ok")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert ("no limit" if hard == resource.RLIM_INFINITY else str(hard)) in report["open_files"]["found"]
    assert f"={read_text('/proc/sys/vm/max_map_count')}" in report["mappings"]["found"]
    report.expect("run_dir", "ok", found="can be made")


def serving_is_true(place):
    """What it says of serving is what a server and a VMM find."""
    report = place.doctor()
    assert report.serving != "missing", report.summary
    assert place.serves()
    with Server() as server:
        image = os.path.join(server.dir, "base.mem")
        make_image(image)
        assert server.call("POST", "/v1/templates", {"name": "base", "memory": image}).status == 201
        fork = server.call("POST", "/v1/forks", {"template": "base", "id": "a"}).json
        with FakeVmm(fork["socket"], PAGES * PAGE) as vmm:
            for page in range(PAGES):
                assert vmm.read(page * PAGE) == struct.pack("<Q", page + 1), f"page {page}"
        # While a server is there, it is seen, and not disturbed.
        place.doctor(run_dir=server.run_dir).expect("run_dir", "ok", found="a server answers")
        assert server.call("GET", "/v1/templates").status == 200
    report.expect("uffd_open", "ok")
    report.expect("uffd_fault", "ok")
    report.expect("uffd_kernel_fault", "ok")


def huge_pages(place):
    def pool():
        directory = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
        return [read_text(directory + name) for name in ("nr_hugepages", "free_hugepages", "resv_hugepages",
                                                       "nr_overcommit_hugepages")]

    # Other tests use the pool too: a report counts that was made while nobody did.
    for _ in range(100):
        before, report = pool(), place.doctor()
        if pool() == before:
            break
    else:
        raise Unavailable("others use the pool all the time")
    total, free, reserved, more = before
    if total is None or (total, more) == ("0", "0"):
        report.expect("huge_pages", "missing")
    elif int(free) > int(reserved):
        report.expect("huge_pages", "ok", found=f"of {total} of 2 MiB free")
    assert report.summary["huge_pages"] == report["huge_pages"]["found"].partition(";")[0]
    thp = read_text("/sys/kernel/mm/transparent_hugepage/enabled") or "none"
    assert thp in report["transparent_huge_pages"]["found"]


def kvm(place):
    report = place.doctor()
    assert (report["kvm"]["status"] == "ok") == os.access("/dev/kvm", os.R_OK | os.W_OK)
    if report["kvm"]["status"] != "ok":
        report.expect("kvm_fault", "missing")
        report.expect("bpf_kvm_page_fault", "missing")
        assert report.summary["kvm"] != "ok"


def kernel_types(place):
    report = place.doctor()
    path = "/sys/kernel/btf/vmlinux"
    if not os.path.exists(path):
        report.expect("btf_kernel", "missing", remedy="CONFIG_DEBUG_INFO_BTF")
        return
    with open(path, "rb") as f:
        known = f.read()
    # Names of functions stand in its string table.
    report.expect("btf_kernel", "ok" if b"\0handle_userfault\0" in known else "degraded")
    if not os.path.exists("/sys/bus/event_source/devices/kprobe"):
        report.expect("bpf_kprobe", "missing", found="no kprobes", errno="ENOENT")


def tier_follows_from_its_checks(place):
    report = place.doctor()
    works = {name: report[name]["status"] == "ok" for name in CHECKS}
    tier = next((tier for tier in ("fentry", "kprobe", "tp_btf") if works[f"tier_{tier}"]), "none")
    # What the kernel lets any program do, it lets the server's programs do.
    for tried, needs in (("fentry", ["bpf_fentry"]), ("kprobe", ["bpf_kprobe"]), ("tp_btf", ["bpf_page_fault_user", "bpf_sched_switch"])):
        assert works[f"tier_{tried}"] == all(works[name] for name in [*needs, "bpf_ring_buffer"]), report[f"tier_{tried}"]
    assert report.summary["observation"]["tier"] == tier
    assert report.summary["observation"]["pins"] == works["bpf_pin"]
    if tier == "fentry" and not works["bpf_kprobe"]:
        assert report["bpf_kprobe"]["cost"].startswith("nothing") and report["bpf_kprobe"]["remedy"] is None


def nothing_is_left_behind(place):
    directory = place.make_open_dir("clean")
    run_dir = os.path.join(directory, "run")
    process = place.run("doctor", "--run-dir", run_dir)
    assert os.listdir(directory) == []
    if os.path.isdir("/sys/fs/bpf"):
        assert f"faultline-doctor-{process.pid}" not in os.listdir("/sys/fs/bpf")
    os.mkdir(run_dir, 0o755)
    place.doctor(run_dir=run_dir).expect("run_dir", "ok", found="0755")
    assert os.listdir(directory) == ["run"] and os.listdir(run_dir) == []
    assert os.stat(run_dir).st_mode & 0o777 == 0o755


def killed_in_the_middle(place):
    """Its children end with it, wherever it was."""
    arguments = [place.binary, "doctor", "--json", "--run-dir", place.path("open", "run")]
    for rows in range(0, 20):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, start_new_session=True)
        # Its first child is there, and has come as far as that many turns of this loop let it.
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        while not read_text(children) and process.poll() is None:
            pass
        for _ in range(rows * 50):
            read_text(children)
        descriptors = []
        for pid in processes_of_session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(pid))
        process.kill()
        process.wait()
        for pidfd in descriptors:
            assert select.select([pidfd], [], [], DEADLINE_S)[0], "a child lives on"
            os.close(pidfd)


def text_report(place):
    process = place.run("doctor", "--run-dir", place.path("open", "run"))
    text = process.stdout_text
    assert process.returncode == 0 and process.stderr_text == ""
    assert "\033" not in text
    rows = re.findall(r"^  (ok|degraded|missing) +(\S.*?)  +(\S.*)$", text, re.M)
    report = place.doctor()
    expected = [(check["status"], check["title"]) for check in report.json["checks"]]
    # The pool of huge pages may be used by others in between.
    different = [pair for pair in zip(rows, expected) if pair[0][:2] != pair[1] and "pool" not in pair[1][1]]
    assert len(rows) == len(expected) and not different, different
    # Columns are aligned.
    assert len({match.start(3) - match.start(0) for match in
                re.finditer(r"^  (ok|degraded|missing) +(\S.*?)  +(\S.*)$", text, re.M)}) == 1
    for group in {check["group"] for check in report.json["checks"]}:
        assert f"\n{group}\n" in "\n" + text, group
    last = text.rstrip().splitlines()[-5:]
    assert [re.split(r"  +", line)[0] for line in last] == ["serving", "prefetch", "observation", "huge pages", "KVM"]
    assert f"tier {report.summary['observation']['tier']}" in last[2] or "none" in last[2]


def on_a_terminal(place, columns, environment):
    """The report as a terminal COLUMNS wide gets it."""
    try:
        master, slave = pty.openpty()
    except OSError as error:
        raise Unavailable(f"no terminals: {error}") from error
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen([place.binary, "doctor", "--run-dir", place.path("open", "run")], stdin=slave, stdout=slave,
                               env={**kept, "TERM": "xterm", **environment})
    os.close(slave)
    output = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        output += data
    os.close(master)
    assert process.wait(DEADLINE_S) == 0
    return output.decode().replace("\r\n", "\n")


def colour(place):
    assert "\033[32mok" in on_a_terminal(place, 200, {})
    assert "\033" not in on_a_terminal(place, 200, {"NO_COLOR": "1"})
    assert "\033" not in on_a_terminal(place, 200, {"TERM": "dumb"})
    assert "\033[" in on_a_terminal(place, 200, {"NO_COLOR": ""})


def lines_fit_the_terminal(place):
    words = max(len(word) for word in place.run("doctor").stdout_text.split())
    for columns in 80, 120:
        for line in on_a_terminal(place, columns, {"NO_COLOR": "1"}).splitlines():
            assert len(line) <= columns or len(line.split()[-1]) + 20 > columns or words > columns - 50, line


def run_dir_by_environment(place):
    run_dir = place.make_open_dir("by-environment")
    process = place.run("doctor", "--json", env={**os.environ, "FAULTLINE_RUN_DIR": run_dir})
    assert f"'{run_dir}' is there" in process.stdout_text


def bad_command_lines(place):
    for arguments, word in (["extra"], "one word too many"), (["--jsn"], "did you mean '--json'"), \
            (["--run-dir"], "needs a value"):
        process = place.run("doctor", *arguments)
        assert process.returncode == 2 and word in process.stderr_text and not process.stdout_text, process.stderr_text
    process = place.run("doctor", "--help")
    assert process.returncode == 0 and "Exit code:" in process.stdout_text
    assert "doctor" in place.run("--help").stdout_text


def full_disk(place):
    for arguments in ["doctor"], ["doctor", "--json"]:
        with open("/dev/full", "wb") as full:
            process = place.run(*arguments, stdout=full)
        assert process.returncode == 1 and "can't write to standard output" in process.stderr_text


def shape_is_checked(place):
    """The checker of shapes does find what is wrong."""
    report = place.doctor().json
    for spoil in (lambda r: r.pop("version"), lambda r: r["checks"].pop(), lambda r: r["checks"][0].update(status="fine"),
                  lambda r: r["summary"]["serving"].update(more=1)):
        spoilt = {**report, "summary": {**report["summary"], "serving": dict(report["summary"]["serving"])},
                  "checks": [dict(check) for check in report["checks"]]}
        spoil(spoilt)
        try:
            check_shape(spoilt)
        except AssertionError:
            continue
        raise AssertionError("a wrong shape passed")


run_checks([this_machine, serving_is_true, huge_pages, kvm, kernel_types, tier_follows_from_its_checks,
            nothing_is_left_behind, killed_in_the_middle, text_report, colour, lines_fit_the_terminal,
            run_dir_by_environment, bad_command_lines, full_disk, shape_is_checked])
