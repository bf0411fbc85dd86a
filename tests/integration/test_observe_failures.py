#!/usr/bin/python3
"""`faultline serve --observe` where something is in its way: it says what, and forks are served all the same; and its pins come and go with it."""
import json
import os
import signal
import subprocess
import sys
import tempfile

from api_client import DEADLINE_S, PAGE, PAGES, make_image, skip
from fake_vmm import FakeVmm

HERE = os.path.dirname(os.path.abspath(__file__))
SECCOMP = [sys.executable, os.path.join(HERE, "seccomp_filter.py")]
STARTED = []
PINS = "/sys/fs/bpf/faultline"
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-bpf,-perfmon,-sys_admin"]


class Server:
    """`faultline serve`, with PREFIX in front; its log is kept. ready() is False where it ended instead of serving."""

    def __init__(self, place, *arguments, prefix=(), run_dir="run", **environment):
        self.run_dir = os.path.join(place, run_dir)
        os.makedirs(os.path.dirname(self.run_dir), exist_ok=True)
        self.binary = os.environ["FAULTLINE"]
        self.log = []
        self.process = subprocess.Popen([*prefix, self.binary, "serve", "--run-dir", self.run_dir, *arguments],
                                        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        STARTED.append(self.process)

    def ready(self):
        for line in self.process.stderr:
            self.log.append(line)
            if " serves in " in line:
                return True
        return False

    @property
    def text(self):
        return "".join(self.log)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.log += list(self.process.stderr)
        return self.process.wait(DEADLINE_S)

    def call(self, *arguments):
        out = subprocess.run([self.binary, *arguments, "--run-dir", self.run_dir], check=True, timeout=DEADLINE_S,
                             stdout=subprocess.PIPE, text=True)
        return out.stdout.strip()

    def fork_of(self, image, name):
        """A fork whose VMM reads each page, and compares it. Its `fork show --json`."""
        if "base" not in self.call("template", "list"):
            self.call("template", "add", "base", "--memory", image)
        socket = self.call("fork", "create", "base", "--id", name)
        with FakeVmm(socket, PAGES * PAGE) as vmm:
            STARTED.append(vmm.process)
            # What is touched before is not seen in the kernel: the server only just learns of the userfaultfd.
            self.call("fork", "wait", name, "--for", "connected")
            for page in range(PAGES):
                assert int.from_bytes(vmm.read(page * PAGE), "little") == page + 1, page
        self.call("fork", "wait", name, "--for", "gone")
        return json.loads(self.call("fork", "show", name, "--json"))


def pins():
    return sorted(os.listdir(PINS)) if os.path.isdir(PINS) else []


# ---- the tests: each gets a directory of its own, in mounts of its own with an empty bpffs ----

def all_is_well(place, image):
    server = Server(place, "--observe", "require")
    assert server.ready(), server.text
    assert f"{PINS}/run" in server.text, server.text
    assert {"forks", "server"} <= set(os.listdir(f"{PINS}/run"))
    fork = server.fork_of(image, "a")
    assert fork["observe_tier"] != "none", fork
    assert fork["observed"]["faults"] == PAGES, fork
    assert fork["observed"]["events_lost"] == 0, fork
    assert server.stop() == 0
    assert not os.path.exists(PINS), pins()


def killed_and_started_again(place, image):
    first = Server(place)
    assert first.ready()
    first.fork_of(image, "a")
    first.stop(signal.SIGKILL)
    assert pins() == ["run"]  # pins outlive their maker
    second = Server(place)
    assert second.ready()
    assert pins() == ["run"], pins()
    fork = second.fork_of(image, "b")
    assert fork["observed"]["faults"] == PAGES, fork  # once, not by both
    assert second.stop() == 0
    assert not os.path.exists(PINS), pins()


def killed_and_never_started_again(place, image):
    """Another instance of the same name cleans up after it."""
    first = Server(place, run_dir="x/run")
    assert first.ready()
    first.stop(signal.SIGKILL)
    second = Server(place, run_dir="y/run")
    assert second.ready()
    assert pins() == ["run"], pins()
    assert second.stop() == 0
    assert not os.path.exists(PINS), pins()


def two_of_one_name(place, image):
    first, second = Server(place, run_dir="x/run"), None
    assert first.ready()
    second = Server(place, run_dir="y/run")
    assert second.ready()
    assert pins() == ["run", "run-2"], pins()
    assert f"{PINS}/run-2" in second.text, second.text
    assert first.fork_of(image, "a")["observed"]["faults"] == PAGES
    assert second.fork_of(image, "a")["observed"]["faults"] == PAGES
    assert first.stop() == 0
    assert pins() == ["run-2"], pins()
    assert second.stop() == 0
    assert not os.path.exists(PINS), pins()


def pinned_by_somebody_else(place, image):
    """A map that isn't ours lies where ours should: it stays, and is not read as ours."""
    os.makedirs(f"{PINS}/run")
    subprocess.run([bpftool(), "map", "create", f"{PINS}/run/server", "type", "array", "key", "4", "value", "8", "entries",
                    "1", "name", "foreign"], check=True)
    server = Server(place)
    assert server.ready()
    assert f"{PINS}/run-2" in server.text, server.text
    assert server.fork_of(image, "a")["observed"]["faults"] == PAGES
    assert server.stop() == 0
    assert os.listdir(f"{PINS}/run") == ["server"]


def no_bpffs(place, image):
    subprocess.run(["umount", "/sys/fs/bpf"], check=True)
    server = Server(place, "--observe", "require")
    assert server.ready(), server.text
    assert "mount -t bpf" in server.text, server.text
    assert server.fork_of(image, "a")["observed"]["faults"] == PAGES
    assert server.stop() == 0


def bpf_refused(place, image):
    prefix = [*SECCOMP, "EPERM", "bpf"]
    server = Server(place, prefix=prefix)
    assert server.ready()
    assert "no tier works" in server.text, server.text
    fork = server.fork_of(image, "a")
    assert fork["observe_tier"] == "none" and fork["faults"] == PAGES, fork
    assert server.stop() == 0
    server = Server(place, "--observe", "require", prefix=prefix)
    assert not server.ready()
    assert server.stop() == 1
    assert "observation is required" in server.text, server.text


def rights_missing(place, image):
    server = Server(place, prefix=WITHOUT_RIGHTS)
    assert server.ready()
    assert "CAP_BPF" in server.text and "CAP_PERFMON" in server.text, server.text
    fork = server.fork_of(image, "a")
    assert fork["observe_tier"] == "none" and fork["faults"] == PAGES, fork
    assert server.stop() == 0


def half_refused(place, image):
    """Whichever tiers this kernel refuses, one by one: what is refused is named, and what works is used."""
    for tier in ("fentry", "kprobe", "tp_btf"):
        server = Server(place, FAULTLINE_OBSERVE_TIER=tier)
        assert server.ready()
        fork = server.fork_of(image, tier)
        if fork["observe_tier"] == "none":
            assert f"no tier works, so forks are served unobserved: {tier}: " in server.text, server.text
        else:
            assert fork["observe_tier"] == tier and fork["observed"]["faults"] == PAGES, fork
        assert fork["faults"] == PAGES, fork
        assert server.stop() == 0
    server = Server(place, "--observe", "off")
    assert server.ready()
    assert server.fork_of(image, "off")["observe_tier"] == "none"
    assert pins() == []
    assert server.stop() == 0


def bpftool():
    for path in ("/usr/sbin/bpftool", "/sbin/bpftool", "/usr/bin/bpftool"):
        if os.path.exists(path):
            return path
    raise AssertionError("bpftool is not installed: apt-get install bpftool")


TESTS = [all_is_well, killed_and_started_again, killed_and_never_started_again, two_of_one_name, pinned_by_somebody_else,
         no_bpffs, bpf_refused, rights_missing, half_refused]


def main():
    if not os.environ.get("FAULTLINE"):
        skip("FAULTLINE does not name the faultline binary")
    if os.geteuid():
        skip("needs root, for userfaultfd")
    if len(sys.argv) == 3:
        image = os.path.join(sys.argv[2], "image")
        make_image(image)
        try:
            return next(test for test in TESTS if test.__name__ == sys.argv[1])(sys.argv[2], image)
        finally:
            for process in STARTED:
                if process.poll() is None:
                    process.kill()
    failed = 0
    for test in TESTS:
        with tempfile.TemporaryDirectory(prefix="faultline-observe.") as place:
            code = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-ec",
                                   "mkdir -p /sys/fs/bpf; umount /sys/fs/bpf 2>/dev/null || true; "
                                   'mount -t bpf bpf /sys/fs/bpf; exec "$@"',
                                   "sh", sys.executable, __file__, test.__name__, place], check=False).returncode
        print(f"{'ok' if code == 0 else 'FAILED'}: {test.__name__}", flush=True)
        failed += code != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
