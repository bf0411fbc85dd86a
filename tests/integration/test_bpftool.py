#!/usr/bin/python3
"""What docs/bpftool.md shows is what there is: names of pins, fields, and figures that bpftool reads beside the server."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import api_client  # noqa: E402
from api_client import DEADLINE_S, PAGE, PAGES, Server, skip, wait_for  # noqa: E402
from fake_vmm import FakeVmm  # noqa: E402

PINS = pathlib.Path("/sys/fs/bpf/faultline")
BPFTOOL = shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
DOCUMENT = pathlib.Path(os.environ.get("FAULTLINE_SOURCE") or skip("FAULTLINE_SOURCE is not set"), "docs/bpftool.md").read_text(encoding="utf-8")


def bpftool(*arguments):
    done = subprocess.run([BPFTOOL, "-j", *map(str, arguments)], capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return json.loads(done.stdout)


def dump(path):
    return [entry["formatted"] for entry in bpftool("map", "dump", "pinned", path)]


def shown(command):
    """The output that the document has below a command."""
    found = re.search(rf"^    \$ {re.escape(command)}\n((?:    .*\n)+)", DOCUMENT, flags=re.M)
    assert found, f"docs/bpftool.md doesn't show {command}"
    return found.group(1)


def directory_of(server):
    """Another server may have pins by the same name."""
    for directory in PINS.glob("run*"):
        if dump(directory / "server")[0]["value"]["run_dir"] == server.run_dir:
            return directory
    return None


def setUpModule():
    if not BPFTOOL:
        skip("bpftool is not installed: see tools/setup")
    if subprocess.run(["stat", "-f", "-c", "%T", "/sys/fs/bpf"], capture_output=True, text=True, check=True).stdout.strip() != "bpf_fs":
        skip("no BPF filesystem is mounted at /sys/fs/bpf")


class Bpftool(unittest.TestCase):
    def setUp(self):
        self.server = self.enterContext(Server())
        if self.server.call("GET", "/v1/server").json["observe_tier"] == "none":
            self.skipTest("no tier of observation works here")
        self.pins = directory_of(self.server)
        self.assertIsNotNone(self.pins, list(PINS.iterdir()))
        image = os.path.join(self.server.dir, "image")
        api_client.make_image(image)
        self.server.call("POST", "/v1/templates", {"name": "base", "memory": image})

    def fork(self, name, record=False):
        fork = self.server.call("POST", "/v1/forks", {"template": "base", "id": name, "record": record}).json
        vmm = self.enterContext(FakeVmm(fork["socket"], PAGES * PAGE))
        self.assertEqual(self.server.call("GET", f"/v1/forks/{name}/wait?for=connected").status, 200)
        return vmm

    def test_forks(self):
        for number, (name, record) in enumerate([("web-1", False), ("web-2", True)]):
            vmm = self.fork(name, record)
            for page in range(PAGES - number):
                vmm.read(page * PAGE)
        # A thread's last touch is told with its next step.
        wait_for(lambda: sum(entry["value"]["faults"] for entry in dump(self.pins / "forks")) > 2 * PAGES - 4)
        entries = dump(self.pins / "forks")
        self.assertEqual([entry["value"]["id"] for entry in sorted(entries, key=lambda entry: entry["key"]["slot"])], ["web-1", "web-2"])
        for entry in entries:
            value = entry["value"]
            told = self.server.call("GET", f"/v1/forks/{value['id']}").json
            self.assertEqual(value["pid"], told["pid"])
            self.assertEqual(value["sleeps_wanted"], int(told["record"]))
            self.assertLessEqual(value["faults"], PAGES)
            self.assertEqual(sum(value["stall_log2_ns"]), value["faults"])
            self.assertLessEqual(value["stall_max_ns"], value["stall_ns"])
            # Each stall lies in its bucket.
            low = sum(count << bucket for bucket, count in enumerate(value["stall_log2_ns"]))
            self.assertTrue(low <= value["stall_ns"] < 2 * low, value)
            self.assertEqual(value["events_lost"], 0)
            self.assertGreaterEqual(value["events"], value["faults"] + value["touches"])

    def test_the_document_shows_its_fields(self):
        self.fork("web-1").read(0)
        wait_for(lambda: dump(self.pins / "forks"))
        for name in ("forks", "server"):
            text = shown(f"bpftool map dump pinned /sys/fs/bpf/faultline/faultline/{name}")
            entry = dump(self.pins / name)[0]
            fields = list(entry["value"]) + (list(entry["key"]) if isinstance(entry["key"], dict) else [])
            written = [field for field in re.findall(r'"(\w+)":', text) if field not in ("key", "value")]
            self.assertEqual(sorted(written), sorted(fields))
        # And explains those of a fork.
        for field in [*dump(self.pins / "forks")[0]["value"], "slot"]:
            self.assertIn(f"| `{field}` |", DOCUMENT)

    def test_programs(self):
        listed = shown("ls /sys/fs/bpf/faultline/faultline").split()
        self.assertTrue({"forks", "server"} <= set(listed))
        names = {path.name for path in self.pins.iterdir()}
        self.assertTrue({"forks", "server"} <= names)
        for name in names - {"forks", "server"}:
            program = bpftool("prog", "show", "pinned", self.pins / name)
            self.assertTrue(name.startswith(program["name"]), program)
        if self.server.call("GET", "/v1/server").json["observe_tier"] == "tp_btf":
            self.assertLessEqual({"touch_user", "touch_kernel", "sched_switched", "find_context"}, names & set(listed))
            program = bpftool("prog", "show", "pinned", self.pins / "touch_user")
            links = [link for link in bpftool("link", "show") if link.get("prog_id") == program["id"]]
            self.assertEqual([link["tp_name"] for link in links], ["page_fault_user"])

    def test_the_server_is_named(self):
        info = dump(self.pins / "server")[0]["value"]
        self.assertEqual((info["pid"], info["run_dir"]), (self.server.process.pid, self.server.run_dir))
        self.assertEqual(info["tier"], self.server.call("GET", "/v1/server").json["observe_tier"])
        with open(f"/proc/{info['pid']}/stat", encoding="ascii") as stat:
            self.assertEqual(info["started_ticks"], int(stat.read().rsplit(")", 1)[1].split()[19]))

    def test_they_go_with_the_fork_and_with_the_server(self):
        with FakeVmm(self.server.call("POST", "/v1/forks", {"template": "base", "id": "short"}).json["socket"], PAGES * PAGE) as vmm:
            self.server.call("GET", "/v1/forks/short/wait?for=connected")
            vmm.read(0)
            wait_for(lambda: [entry["value"]["id"] for entry in dump(self.pins / "forks")] == ["short"])
        wait_for(lambda: dump(self.pins / "forks") == [])
        self.server.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.server.process.wait(DEADLINE_S), 0)
        self.assertFalse(self.pins.exists())


if __name__ == "__main__":
    unittest.main(verbosity=2, warnings="ignore")
