#!/usr/bin/python3
"""`faultline doctor` where something is taken away: what is missing, and whether a server still comes up, is what it says."""
import os
import resource
import shlex
import socket
import struct
import subprocess
import sys

from api_client import DEADLINE_S, PAGE, PAGES, make_image
from doctor_runs import HERE, NOBODY, SECCOMP, CHECKS, Unavailable, run_checks

UFFD = [name for name in CHECKS if name.startswith("uffd_") and name != "uffd_unprivileged"]
BPF_PROGRAMS = [name for name in CHECKS if name.startswith("bpf_") and name not in ("bpf_pin", "bpf_capabilities")]
KVM_BPF = "bpf_kvm_page_fault"  # says "no KVM" before anything else


def in_namespace(script):
    """A prefix that runs the command in mounts of its own, after SCRIPT."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script + '\nexec "$@"', "sh"]


WITHOUT_DEVICE = in_namespace("test ! -e /dev/userfaultfd || mount --bind /dev/null /dev/userfaultfd")


def unprivileged_userfaultfd():
    with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as f:
        return f.read().strip() == "1"


# ---- no root ----

def nobody(place):
    report = place.doctor(prefix=NOBODY)
    if not unprivileged_userfaultfd() and not os.stat("/dev/userfaultfd").st_mode & 0o006:
        report.expect("uffd_open", "degraded", found="user mode", remedy="vm.unprivileged_userfaultfd=1")
        report.expect("uffd_kernel_fault", "missing", errno="EFAULT", cost="KVM")
    report.expect("uffd_fault", "ok")
    report.expect("stop_vmms", "degraded", remedy="CAP_KILL")
    report.expect("pidfd", "ok")
    for name in BPF_PROGRAMS:
        if name != KVM_BPF:
            report.expect(name, "missing", errno="EPERM", remedy="CAP_BPF")
    assert report.summary["observation"]["tier"] == "none"
    assert report.serving == "degraded", report.summary
    assert place.serves(prefix=NOBODY)


def nobody_is_served(place):
    """A VMM without privileges, by a server without privileges: that is what "degraded" promises."""
    image, run_dir = place.path("base.mem"), os.path.join(place.open_dir(), "served")
    make_image(image)
    server = subprocess.Popen([*NOBODY, place.binary, "serve", "--run-dir", run_dir], stderr=subprocess.PIPE, text=True)
    try:
        assert any(" serves in " in line for line in server.stderr)
        for arguments in (["template", "add", "base", "--memory", image], ["fork", "create", "base", "--id", "a"]):
            subprocess.run([*NOBODY, place.binary, *arguments, "--run-dir", run_dir], check=True, timeout=DEADLINE_S,
                           stdout=subprocess.DEVNULL)
        vmm = subprocess.Popen([*NOBODY, sys.executable, os.path.join(HERE, "fake_vmm.py"), os.path.join(run_dir, "a.uffd"),
                                str(PAGES * PAGE), "--user-mode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answers, _ = vmm.communicate("".join(f"read {page * PAGE}\n" for page in range(PAGES)), DEADLINE_S)
        assert answers.split() == ["connected"] + [struct.pack("<Q", page + 1).hex() for page in range(PAGES)]
    finally:
        server.terminate()
        server.stderr.read()
        server.stderr.close()
        assert server.wait(DEADLINE_S) == 0


def nobody_in_roots_directory(place):
    run_dir = place.path("roots")
    os.mkdir(run_dir, 0o755)
    report = place.doctor(prefix=NOBODY, run_dir=run_dir)
    report.expect("run_dir", "missing", found="belongs to user 0", errno="EPERM")
    assert report.serving == "missing" and not place.serves(prefix=NOBODY, run_dir=run_dir)
    report = place.doctor(prefix=NOBODY, run_dir=os.path.join(run_dir, "below"))
    report.expect("run_dir", "missing", errno="EACCES", remedy="--run-dir")
    assert os.listdir(run_dir) == []


def root_without_capabilities(place):
    report = place.doctor(prefix=["setpriv", "--bounding-set=-all"])
    report.expect("bpf_ring_buffer", "missing", errno="EPERM", remedy="CAP_BPF")
    report.expect("stop_vmms", "degraded")


def user_namespace(place):
    prefix = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*prefix, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        raise Unavailable("user namespaces are refused")
    report = place.doctor(prefix=prefix)
    report.expect("stop_vmms", "degraded", found="user namespace")
    report.expect("bpf_fentry", "missing", remedy="user namespace")


# ---- seccomp ----

def no_userfaultfd(place):
    for answer in "ENOSYS", "EPERM":
        prefix = [*WITHOUT_DEVICE, *SECCOMP, answer, "userfaultfd"]
        report = place.doctor(prefix=prefix)
        report.expect("uffd_open", "missing", errno=answer, remedy="seccomp")
        report.expect("uffd_fault", "missing")
        assert report.serving == report.summary["prefetch"]["status"] == "missing"
        assert "userfaultfd" in report.summary["serving"]["why"]
        assert not place.serves(prefix=prefix)
        # What has nothing to do with it is not affected.
        report.expect("io_uring", "ok")
        report.expect("run_dir", "ok")


def userfaultfd_by_device_alone(place):
    if not os.path.exists("/dev/userfaultfd"):
        return
    prefix = [*SECCOMP, "EPERM", "userfaultfd"]
    report = place.doctor(prefix=prefix)
    report.expect("uffd_open", "ok", found="/dev/userfaultfd")
    report.expect("uffd_kernel_fault", "ok")
    assert report.serving != "missing" and place.serves(prefix=prefix)


def killed_for_userfaultfd(place):
    for answer in "kill-process", "kill-thread":
        # A process with a thread of ThreadSanitizer's in it doesn't end with its first thread; that it hangs is found too.
        hangs = answer == "kill-thread" and os.environ.get("FAULTLINE_SANITIZE") == "thread"
        prefix = [*SECCOMP, answer, "userfaultfd"]
        report = place.doctor(prefix=prefix)
        for name in UFFD:
            report.expect(name, "missing", found="did not come back" if hangs else "killed by seccomp (SIGSYS)")
            if not hangs:
                report.expect(name, "missing", errno="EPERM", remedy="seccomp")
        report.expect("io_uring", "ok")
        assert report.serving == "missing"
        assert hangs or not place.serves(prefix=prefix)


def hangs(place):
    """A call that never comes back is given up, and the others are still made."""
    report = place.doctor(prefix=[*SECCOMP, "hang", "inotify_init1,io_uring_setup"])
    for name in "image_watch", "io_uring":
        report.expect(name, "missing", found="did not come back", errno="ETIMEDOUT")
    report.expect("uffd_fault", "ok")
    report.expect("run_dir", "ok")
    assert report.serving == "missing"


def no_io_uring(place):
    for answer in "ENOSYS", "EPERM":
        prefix = [*SECCOMP, answer, "io_uring_setup"]
        report = place.doctor(prefix=prefix)
        report.expect("io_uring", "missing", errno=answer, cost="helper threads", remedy="seccomp")
        assert report.serving == report.summary["prefetch"]["status"] == "degraded"
        assert "io_uring" in report.summary["serving"]["why"]
        assert place.serves(prefix=prefix)


def killed_for_io_uring(place):
    """A server doesn't live through it either."""
    prefix = [*SECCOMP, "kill-process", "io_uring_setup"]
    report = place.doctor(prefix=prefix)
    report.expect("io_uring", "missing", found="killed by seccomp")
    assert report.serving == "missing" and not place.serves(prefix=prefix)


def no_bpf(place):
    for answer in "EPERM", "ENOSYS", "kill-process":
        report = place.doctor(prefix=[*SECCOMP, answer, "bpf"])
        found = "killed by seccomp" if answer == "kill-process" else "failed"
        for name in BPF_PROGRAMS:
            if name != KVM_BPF:
                report.expect(name, "missing", found=found, remedy="seccomp")
        assert report.summary["observation"]["tier"] == "none"
        assert report.serving != "missing"


def no_perf_events(place):
    report = place.doctor(prefix=[*SECCOMP, "EPERM", "perf_event_open"])
    if os.path.exists("/sys/bus/event_source/devices/uprobe"):
        report.expect("bpf_uprobe", "missing", errno="EPERM", found="attaching")
    report.expect("bpf_ring_buffer", place.doctor()["bpf_ring_buffer"]["status"])


def no_pidfd(place):
    report = place.doctor(prefix=[*SECCOMP, "EPERM", "pidfd_open"])
    report.expect("pidfd", "missing", errno="EPERM", found="pidfd_open")
    assert report.serving == "missing"


def no_inotify(place):
    prefix = [*SECCOMP, "EMFILE", "inotify_init1"]
    report = place.doctor(prefix=prefix)
    report.expect("image_watch", "missing", errno="EMFILE", remedy="fs.inotify.max_user_instances")
    assert report.serving == "missing" and not place.serves(prefix=prefix)


def everything_kills(place):
    report = place.doctor(prefix=[*SECCOMP, "kill-process",
                                  "userfaultfd,io_uring_setup,bpf,perf_event_open,pidfd_open,inotify_init1,epoll_pwait2"])
    for name in "main_loop", "uffd_fault", "io_uring", "pidfd", "image_watch", "bpf_ring_buffer":
        report.expect(name, "missing", found="killed by seccomp")
    report.expect("open_files", place.doctor()["open_files"]["status"])


# ---- filesystems ----

def bpf_filesystem(place):
    with_bpffs = "umount /sys/fs/bpf 2>/dev/null || true; mount -t bpf bpf /sys/fs/bpf"
    report = place.doctor(prefix=in_namespace(with_bpffs))
    report.expect("bpf_pin", "ok")
    assert report.summary["observation"]["pins"]
    # Nothing is left there.
    left = subprocess.run([*in_namespace(with_bpffs), "sh", "-c", f"{shlex.quote(place.binary)} doctor >/dev/null; "
                           "find /sys/fs/bpf -mindepth 1 -name '*doctor*'"], check=True, capture_output=True, text=True)
    assert left.stdout == "" and left.stderr == "", left
    for without in ("mount -t tmpfs tmpfs /sys/fs/bpf", "while umount /sys/fs/bpf 2>/dev/null; do :; done"):
        report = place.doctor(prefix=in_namespace(without))
        report.expect("bpf_pin", "missing", found="no BPF filesystem", remedy="mount -t bpf")
        assert not report.summary["observation"]["pins"]
    report = place.doctor(prefix=in_namespace(with_bpffs + "; mount -o remount,ro /sys/fs/bpf"))
    report.expect("bpf_pin", "missing", errno="EROFS", remedy="remount,rw")


def trace_filesystem(place):
    report = place.doctor(prefix=in_namespace(
        "test -e /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing"))
    report.expect("bpf_tracepoint", "ok")
    report = place.doctor(prefix=in_namespace(
        "mount -t tmpfs tmpfs /sys/kernel/tracing; mount -t tmpfs tmpfs /sys/kernel/debug"))
    report.expect("bpf_tracepoint", "missing", remedy="mount -t tracefs")


def no_sys(place):
    report = place.doctor(prefix=in_namespace("mount -t tmpfs tmpfs /sys"))
    report.expect("btf_kernel", "missing", remedy="/sys")
    report.expect("huge_pages", "missing")
    assert report.serving != "missing" and place.serves(prefix=in_namespace("mount -t tmpfs tmpfs /sys"))


def no_dev_kvm(place):
    if not os.path.exists("/dev/kvm"):
        return
    report = place.doctor(prefix=in_namespace("mount --bind /dev/null /dev/kvm"))
    report.expect("kvm", "missing")
    report.expect("kvm_fault", "missing")
    assert report.summary["kvm"] != "ok" and report.serving != "missing"


# ---- limits ----

def few_files(place):
    cpus = os.cpu_count()
    for limit, status in ((1000, "degraded"), (24 + 4 * cpus, "degraded"), (23 + 4 * cpus, "missing"), (8, "missing")):
        prefix = ["prlimit", f"--nofile={limit}", "--"]
        report = place.doctor(prefix=prefix)
        report.expect("open_files", status, found=str(limit), remedy="LimitNOFILE")
        if status == "degraded":
            assert report.serving != "missing" and place.serves(prefix=prefix), limit
    assert not place.serves(prefix=["prlimit", "--nofile=8", "--"])
    many = 6000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= many:
        place.doctor(prefix=["prlimit", f"--nofile=16:{many}", "--"]).expect("open_files", "ok", found=str(many))


def few_processes(place):
    """No child can be started: that is a report too."""
    prefix = [*NOBODY, "prlimit", "--nproc=1", "--"]
    # The leak checker of a sanitized build wants a process of its own.
    options = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
    report = place.doctor(prefix=prefix, env={**os.environ, "ASAN_OPTIONS": options})
    assert all(check["status"] == "missing" and "no process" in check["found"] for check in report.json["checks"])
    assert report.serving == "missing" and not place.serves(prefix=prefix)


def little_locked_memory(place):
    report = place.doctor(prefix=[*NOBODY, "prlimit", "--memlock=4096", "--"])
    report.expect("locked_memory", "degraded", remedy="LimitMEMLOCK")


def one_cpu(place):
    cpus = sorted(os.sched_getaffinity(0))
    report = place.doctor(prefix=["taskset", "--cpu-list", str(cpus[-1])])
    if os.cpu_count() == 1:
        report.expect("cpus", "ok")
        return
    report.expect("cpus", "degraded", found=f"1 of {os.cpu_count()} that are online: {cpus[-1]} of", remedy="taskset")
    assert report.serving == "degraded" and "CPUs" in report.summary["serving"]["why"]


# ---- run directories ----

def run_dir_that_is_no_place(place):
    file = place.path("a-file")
    with open(file, "wb"):
        pass
    for run_dir, errno, word in ((place.path("no", "parent"), "ENOENT", "mkdir -p"), (file, "ENOTDIR", "--run-dir"),
                                 (os.path.join(file, "below"), "ENOTDIR", "--run-dir")):
        report = place.doctor(run_dir=run_dir)
        report.expect("run_dir", "missing", errno=errno, remedy=word)
        assert report.serving == "missing" and not place.serves(run_dir=run_dir), run_dir


def run_dir_read_only(place):
    directory = place.make_open_dir("read-only")
    mount = in_namespace(f"mount -t tmpfs tmpfs {directory}; mkdir -m 700 {directory}/run; "
                         f"mount -o remount,ro {directory}")
    for run_dir in os.path.join(directory, "run"), os.path.join(directory, "new"):
        report = place.doctor(prefix=mount, run_dir=run_dir)
        report.expect("run_dir", "missing", errno="EROFS")
        assert report.serving == "missing" and not place.serves(prefix=mount, run_dir=run_dir)


def run_dir_full(place):
    directory = place.make_open_dir("full")
    mount = in_namespace(f"mount -t tmpfs -o size=64k tmpfs {directory}; mkdir -m 700 {directory}/run; "
                         f"dd if=/dev/zero of={directory}/filler bs=4k 2>/dev/null || true")
    report = place.doctor(prefix=mount, run_dir=os.path.join(directory, "run"))
    report.expect("run_dir_filesystem", "missing", errno="ENOSPC", found="full")
    mount = in_namespace(f"mount -t tmpfs -o size=1m tmpfs {directory}; mkdir -m 700 {directory}/run")
    report = place.doctor(prefix=mount, run_dir=os.path.join(directory, "run"))
    report.expect("run_dir_filesystem", "degraded", found="tmpfs, only")
    report.expect("run_dir", "ok")


def run_dir_on_overlay(place):
    directory = place.make_open_dir("overlay")
    mount = in_namespace(f"mount -t tmpfs tmpfs {directory}; cd {directory}; mkdir low up work all; mount -t overlay "
                         "-o lowerdir=low,upperdir=up,workdir=work overlay all; cd /")
    report = place.doctor(prefix=mount, run_dir=os.path.join(directory, "all", "run"))
    if "overlay" in report["run_dir_filesystem"]["found"]:
        report.expect("run_dir_filesystem", "degraded", remedy="volume")
        assert report.serving == "degraded"


def run_dir_with_a_long_path(place):
    """The lengths at which it says that a server starts, or that the longest id still fits, are the true ones."""
    longest_id = "i" * 64

    def path_of(length):
        directory = place.open_dir()
        return os.path.join(directory, "x" * (length - len(directory) - 1))

    def fits(length):
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(f"{path_of(length)}/{longest_id}.uffd")
            except OSError:
                return False
        return True

    os.mkdir(path_of(37))
    os.mkdir(path_of(38))
    for length, status in ((37, "ok"), (38, "degraded"), (94, "degraded"), (95, "missing"), (200, "missing"), (250, "missing")):
        report = place.doctor(run_dir=path_of(length))
        report.expect("run_dir_path", status, found=str(length))
        assert (report.serving == "missing") == (status == "missing") == (not place.serves(run_dir=path_of(length))), length
    for length in 37, 38:
        assert fits(length) == (length == 37), length
    # Slashes at the end, and links on the way, are not counted.
    place.doctor(run_dir=path_of(36) + "//").expect("run_dir_path", "ok", found="36")
    os.symlink(place.open_dir(), place.path("l" * 60))
    place.doctor(run_dir=place.path("l" * 60, "run")).expect("run_dir_path", "ok", found=str(len(place.open_dir()) + 4))


def run_dir_with_a_strange_name(place):
    for name in b"caf\xe9", b"line\nend", "höher".encode(), b"'quoted'":
        directory = os.path.join(os.fsencode(place.open_dir()), name)
        place.doctor(run_dir=directory).expect("run_dir", "ok")
    text = place.run("doctor", "--run-dir", os.path.join(place.open_dir(), "line\n\033[2Jend")).stdout_text
    assert "\033" not in text and "\nend" not in text


run_checks([nobody, nobody_is_served, nobody_in_roots_directory, root_without_capabilities, user_namespace,
            no_userfaultfd, userfaultfd_by_device_alone, killed_for_userfaultfd, hangs, no_io_uring, killed_for_io_uring, no_bpf,
            no_perf_events, no_pidfd, no_inotify, everything_kills,
            bpf_filesystem, trace_filesystem, no_sys, no_dev_kvm,
            few_files, few_processes, little_locked_memory, one_cpu,
            run_dir_that_is_no_place, run_dir_read_only, run_dir_full, run_dir_on_overlay, run_dir_with_a_long_path,
            run_dir_with_a_strange_name])
