"""Runs of `faultline doctor`, each report held against its documented shape: what the doctor's tests share."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback

from api_client import DEADLINE_S, skip

HERE = os.path.dirname(os.path.abspath(__file__))
SECCOMP = [sys.executable, os.path.join(HERE, "seccomp_filter.py")]
NOBODY = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--bounding-set=-all"]

STATUSES = ("ok", "degraded", "missing")
USES = ("serving", "prefetch", "observation", "vmm")
TIERS = ("fentry", "kprobe", "tp_btf", "none")
CHECKS = """
    kernel_version cpus main_loop
    uffd_open uffd_fault uffd_kernel_fault uffd_unprivileged uffd_ioctls uffd_poison uffd_event_remove uffd_event_unmap
    uffd_event_remap uffd_event_fork uffd_shared_memory uffd_hugetlbfs uffd_minor uffd_thread_id uffd_exact_address uffd_move
    huge_pages transparent_huge_pages
    io_uring
    pidfd peer_pidfd stop_vmms proc image_watch image_lease
    kvm kvm_fault
    btf_kernel btf_kvm bpf_ring_buffer bpf_fentry bpf_kprobe bpf_page_fault_user bpf_sched_switch bpf_kvm_page_fault
    bpf_tracepoint bpf_uprobe bpf_task_vma bpf_pin
    bpf_capabilities tier_fentry tier_kprobe tier_tp_btf tier_with_sched_waking tier_with_kvm_page_fault
    open_files locked_memory mappings memory tasks
    run_dir run_dir_path run_dir_filesystem
""".split()


def exact(value, types):
    """VALUE is an object with just these members, each of its type."""
    assert list(value) == list(types), f"members {list(value)}, expected {list(types)}"
    for name, kind in types.items():
        assert isinstance(value[name], kind), f"{name} is {value[name]!r}"


def check_shape(report):
    maybe = (str, type(None))
    exact(report, {"version": int, "faultline": str, "summary": dict, "checks": list})
    assert report["version"] == 1
    summary = report["summary"]
    exact(summary, {"serving": dict, "prefetch": dict, "observation": dict, "huge_pages": str, "kvm": str})
    for use in "serving", "prefetch":
        exact(summary[use], {"status": str, "why": maybe})
        assert summary[use]["status"] in STATUSES
        assert (summary[use]["why"] is None) == (summary[use]["status"] == "ok"), summary[use]
    exact(summary["observation"], {"tier": str, "pins": bool, "why": maybe})
    assert summary["observation"]["tier"] in TIERS
    assert [check["name"] for check in report["checks"]] == CHECKS
    for check in report["checks"]:
        exact(check, {"name": str, "group": str, "title": str, "status": str, "for": list, "found": str, "errno": maybe,
                      "cost": maybe, "remedy": maybe})
        assert check["status"] in STATUSES and set(check["for"]) <= set(USES), check
        assert check["found"], check
        if check["status"] == "ok":
            assert check["cost"] is None and check["remedy"] is None and check["errno"] is None, check
        else:
            # Whoever lacks something is told what that means, and what to do unless it means nothing.
            assert check["cost"], check
            assert check["remedy"] or check["cost"].startswith("nothing"), check
        assert re.fullmatch("E[A-Z0-9]+", check["errno"] or "E1"), check


class Unavailable(Exception):
    """This machine lacks what a check of the test's is made with."""


class Report:
    def __init__(self, output, exit_code):
        self.exit_code = exit_code
        self.json = json.loads(output)
        check_shape(self.json)
        self.summary = self.json["summary"]
        assert exit_code == (1 if self.serving == "missing" else 0), f"exit code {exit_code}, serving {self.serving}"

    @property
    def serving(self):
        return self.summary["serving"]["status"]

    def __getitem__(self, name):
        return next(check for check in self.json["checks"] if check["name"] == name)

    def expect(self, name, status, **words):
        """The check has this status, and its members have these words in them."""
        check = self[name]
        assert check["status"] == status, f"expected {status}: {check}"
        for member, word in words.items():
            assert word in (check[member] or ""), f"expected '{word}' in {member}: {check}"
        return check


class Workplace:
    """A directory that others than root can use too, with a copy of the binary."""

    def __init__(self):
        binary = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")
        if os.geteuid():
            skip("needs root, for namespaces and for userfaultfd")
        self.directory = tempfile.TemporaryDirectory(prefix="fl-doctor.", dir="/tmp")
        self.dir = self.directory.name
        os.chmod(self.dir, 0o755)
        self.binary = shutil.copy(binary, os.path.join(self.dir, "faultline"))
        os.chmod(self.binary, 0o755)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.directory.cleanup()

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def make_open_dir(self, name):
        path = self.path(name)
        os.mkdir(path)
        os.chmod(path, 0o777)
        return path

    def run(self, *arguments, prefix=(), **options):
        """The finished process; it must have ended by itself, and leave no process behind."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([*prefix, self.binary, *arguments], text=True, start_new_session=True, **options)
        try:
            process.stdout_text, process.stderr_text = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert not processes_of_session(process.pid), "processes are left behind"
        return process

    def doctor(self, *arguments, prefix=(), run_dir=None, **options):
        """RUN_DIR: by default one that is not there, beside which everybody may write."""
        run_dir = run_dir or os.path.join(self.open_dir(), "run")
        process = self.run("doctor", "--json", "--run-dir", run_dir, *arguments, prefix=prefix, **options)
        assert process.returncode in (0, 1), f"exit code {process.returncode}: {process.stderr_text}"
        assert process.stderr_text == "", process.stderr_text
        return Report(process.stdout_text, process.returncode)

    def open_dir(self):
        path = self.path("open")
        return path if os.path.isdir(path) else self.make_open_dir("open")

    def serves(self, *arguments, prefix=(), run_dir=None):
        """Whether a server comes up; it is stopped again."""
        run_dir = run_dir or os.path.join(self.open_dir(), "run")
        was_there = os.path.lexists(run_dir)
        # Its first line on the way says that it serves; where it doesn't, the pipe ends.
        process = subprocess.Popen([*prefix, self.binary, "serve", "--run-dir", run_dir, *arguments],
                                   stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        served = any(" serves in " in line for line in process.stderr)
        process.terminate()
        process.stderr.read()
        process.stderr.close()
        code = process.wait(DEADLINE_S)
        assert (code == 0) == served, f"the server {'served' if served else 'did not serve'} and ended with {code}"
        if not was_there:
            shutil.rmtree(run_dir, ignore_errors=True)
        return served


def processes_of_session(session):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
                fields = f.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(pid))
    return found


def run_checks(checks):
    """Runs them all; fails with the number of those that failed."""
    failed = 0
    with Workplace() as workplace:
        for check in checks:
            try:
                check(workplace)
                print(f"ok {check.__name__}", flush=True)
            except Unavailable as error:
                print(f"not tried {check.__name__}: {error}", flush=True)
            except AssertionError as error:
                failed += 1
                line = traceback.extract_tb(error.__traceback__)[1]
                print(f"FAILED {check.__name__}, line {line.lineno}: {error or line.line}", flush=True)
    sys.exit(1 if failed else 0)
