#!/usr/bin/python3
"""What the server does without capabilities, and what it gives up once it observes; and that the doctor knows beforehand."""
import json
import os
import pathlib
import struct
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import api_client  # noqa: E402
from api_client import DEADLINE_S, PAGE, PAGES, Server, skip  # noqa: E402
from fake_vmm import FakeVmm  # noqa: E402

BINARY = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")
SYS_ADMIN, PERFMON, BPF = 21, 38, 39
DROPPED = {"CAP_SYS_ADMIN": SYS_ADMIN, "CAP_PERFMON": PERFMON, "CAP_BPF": BPF}
IO_URING_DISABLED = pathlib.Path("/proc/sys/kernel/io_uring_disabled")


def without(*names):
    removed = ",".join(f"-{name}" for name in names)
    return ["setpriv", f"--bounding-set={removed}", f"--inh-caps={removed}"]


class LoggingServer(Server):
    """With options, and a log that can be read; PREFIX: what it is started through."""

    def __init__(self, *options, prefix=()):
        super().__init__()
        self.log_path = pathlib.Path(self.dir, "log")
        wrapper = pathlib.Path(self.dir, "serve")
        command = " ".join([*prefix, self.binary])
        wrapper.write_text(f'#!/bin/sh\nexec {command} "$@" {" ".join(options)} 2>{self.log_path}\n')
        wrapper.chmod(0o755)
        self.binary = str(wrapper)

    def log(self):
        return self.log_path.read_text()


def capabilities(pid):
    """Of each thread: (effective, permitted, inheritable), as bit masks."""
    masks = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = dict(line.split(":\t") for line in (task / "status").read_text().splitlines() if line.startswith("Cap"))
            name = (task / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        masks[f"{task.name} {name}"] = [int(fields[field], 16) for field in ("CapEff", "CapPrm", "CapInh")]
    return masks


def doctors_tier(prefix=()):
    report = subprocess.run([*prefix, BINARY, "doctor", "--json"], capture_output=True, timeout=DEADLINE_S, check=False).stdout
    return json.loads(report)["summary"]["observation"]["tier"]


class Capabilities(unittest.TestCase):
    def served(self, server):
        """A fork is served, every page of it right; what `fork show` says afterwards."""
        image = os.path.join(server.dir, "image")
        api_client.make_image(image)
        self.assertEqual(server.call("POST", "/v1/templates", {"name": "base", "memory": image}).status, 201)
        fork = server.call("POST", "/v1/forks", {"template": "base", "id": "a", "record": True}).json
        with FakeVmm(fork["socket"], PAGES * PAGE) as vmm:
            # A guest that runs before the server knows of it isn't observed so far.
            self.assertEqual(server.call("GET", "/v1/forks/a/wait?for=connected").status, 200)
            for page in range(PAGES):
                self.assertEqual(vmm.read(page * PAGE), struct.pack("<Q", page + 1))
        # Then everything is counted.
        return server.call("GET", "/v1/forks/a/wait?for=gone").json

    def expect_dropped(self, server):
        for thread, masks in capabilities(server.process.pid).items():
            for name, bit in DROPPED.items():
                if name == "CAP_SYS_ADMIN" and IO_URING_DISABLED.exists() and IO_URING_DISABLED.read_text().strip() == "1":
                    continue
                for mask in masks:
                    self.assertFalse(mask >> bit & 1, f"thread {thread} has {name}")

    def test_given_up_once_it_observes(self):
        with LoggingServer() as server:
            tier = server.call("GET", "/v1/server").json["observe_tier"]
            self.assertEqual(tier, doctors_tier())
            if "needs CAP" in server.log():
                self.skipTest("this kernel needs them for each fork")
            self.expect_dropped(server)
            fork = self.served(server)
            # Threads that were started for the fork have none either.
            self.expect_dropped(server)
            if tier == "none":
                self.skipTest("no tier of observation works here")
            # And the fork, which came later, is observed.
            self.assertEqual(fork["observe_tier"], tier)
            # (Where the page came before the thread had gone to sleep, it did not wait: a touch.)
            observed = fork["observed"]
            self.assertGreaterEqual(observed["faults"] + observed["present_touches"], PAGES, observed)
            self.assertGreater(observed["faults"], 0)

    def test_given_up_where_nothing_is_observed(self):
        with LoggingServer("--observe", "off") as server:
            self.expect_dropped(server)
            self.assertEqual(self.served(server)["observe_tier"], "none")

    def test_forks_are_served_without_them(self):
        for names, words in (
            (["bpf", "perfmon", "sys_admin"], "CAP_BPF and CAP_PERFMON are missing"),
            (["bpf", "sys_admin"], "CAP_BPF is missing"),
            (["perfmon", "sys_admin"], "CAP_PERFMON is missing"),
        ):
            with self.subTest(missing=names):
                prefix = without(*names)
                with LoggingServer(prefix=prefix) as server:
                    self.assertEqual(server.call("GET", "/v1/server").json["observe_tier"], "none")
                    self.assertEqual(doctors_tier(prefix), "none")
                    self.assertIn(words, server.log())
                    self.assertEqual(self.served(server)["copied_pages"], PAGES)
                    self.expect_dropped(server)

    def test_required_and_missing(self):
        run_dir = pathlib.Path(self.enterContext(Server().directory), "run")
        done = subprocess.run([*without("bpf", "perfmon", "sys_admin"), BINARY, "serve", "--run-dir", run_dir, "--observe", "require"],
                              capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        for word in ("observation is required", "CAP_BPF and CAP_PERFMON are missing", "faultline doctor"):
            self.assertIn(word, done.stderr)

    def test_the_doctor_names_what_is_missing(self):
        report = json.loads(subprocess.run([*without("bpf", "perfmon", "sys_admin"), BINARY, "doctor", "--json"], capture_output=True,
                                           timeout=DEADLINE_S, check=False).stdout)
        rows = {check["name"]: check for check in report["checks"]}
        for name in ("bpf_capabilities", "tier_fentry", "tier_kprobe", "tier_tp_btf"):
            self.assertEqual(rows[name]["status"], "missing")
            self.assertIn("CAP_BPF and CAP_PERFMON are missing", rows[name]["found"])
            self.assertIn("CAP_BPF", rows[name]["remedy"])
        self.assertNotEqual(report["summary"]["serving"]["status"], "missing")


if __name__ == "__main__":
    unittest.main(verbosity=2, warnings="ignore")
