#!/usr/bin/python3
"""`faultline warmup`: commands as recorded forks, their windows, the merged list; and all that can go wrong on the way."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import unittest
import unittest.mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import api_client  # noqa: E402
from api_client import DEADLINE_S, PAGE, PAGES, Server, wait_for  # noqa: E402

# A VMM that touches the pages of its arguments in their order; of the others: ready (says so), stay, exit=N, stubborn (ignores SIGTERM), log=FILE.
VMM = f"""#!{sys.executable}
import os, signal, struct, subprocess, sys
sys.path.insert(0, {str(HERE)!r})
from fake_vmm import FakeVmm
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with FakeVmm(os.environ["FAULTLINE_SOCKET"], {PAGES * PAGE}) as vmm:
    for word in sys.argv[1:]:
        if word.isdigit():
            assert vmm.read(int(word) * {PAGE}) == struct.pack("<Q", int(word) + 1), word
        elif word == "ready":
            subprocess.run([{os.environ.get("FAULTLINE", "")!r}, "fork", "ready", os.environ["FAULTLINE_FORK"]], check=True)
        elif word == "stay":
            signal.pause()
        elif word.startswith("exit="):
            sys.exit(int(word[5:]))
        elif word.startswith("log="):
            open(word[4:], "w").write(f"{{os.getpid()}} {{vmm.pid}}")
"""


def setUpModule():
    global server, image, vmm, directory, temporary
    server = Server()
    unittest.enterModuleContext(server)
    directory = pathlib.Path(server.dir)
    image, vmm = directory / "image", directory / "vmm"
    api_client.make_image(image)
    temporary = directory / "tmp"
    temporary.mkdir()
    vmm.write_text(VMM)
    vmm.chmod(0o755)
    assert server.call("POST", "/v1/templates", {"name": "base", "memory": str(image)}).status == 201


def start(*arguments, template="base", **more):
    environment = {"TMPDIR": str(temporary), **os.environ, "FAULTLINE_RUN_DIR": server.run_dir}
    return subprocess.Popen([server.binary, "warmup", template, *map(str, arguments)], env=environment, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def finish(process):
    try:
        output, errors = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"`{' '.join(process.args)}` hangs: {process.communicate()}") from None
    return process.returncode, output, errors


def pages_of(path):
    text = subprocess.run([server.binary, "hotlist", "convert", str(path), "-", "--to", "json"], check=True, capture_output=True,
                          timeout=DEADLINE_S).stdout
    return [entry["offset"] // PAGE for entry in json.loads(text)["pages"]]


def is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


class Warmup(unittest.TestCase):
    def setUp(self):
        self.list = directory / f"{self._testMethodName}.hpl2"

    def tearDown(self):
        """Neither forks nor stand-ins of the template are left, whatever happened."""
        if server.process.poll() is None:
            self.assertEqual(server.call("GET", "/v1/forks").json["forks"], [])
            names = [template["name"] for template in server.call("GET", "/v1/templates").json["templates"]]
            self.assertEqual([name for name in names if name.startswith("warmup-")], [])
        self.assertEqual([path.name for path in directory.iterdir() if path.suffix == ".tmp"], [])
        self.assertEqual(list(temporary.iterdir()), [])

    def succeeds(self, *arguments, template="base", output=True):
        where = ["-o", self.list] if output else []
        status, text, errors = finish(start(*where, "--json", *arguments, template=template))
        self.assertEqual(status, 0, errors)
        return json.loads(text)

    def fails(self, *arguments, status=1, words=(), code=None):
        self.list.write_bytes(b"as it was")
        options = ["--json"] if code else []
        got, _, errors = finish(start("-o", self.list, *options, *arguments))
        self.assertEqual(got, status, errors)
        for word in words:
            self.assertIn(word, errors)
        if code:
            self.assertEqual(json.loads(errors.splitlines()[-1])["error"]["code"], code)
        self.assertEqual(self.list.read_bytes(), b"as it was")


class Lists(Warmup):
    def test_pages_in_the_order_of_their_touches(self):
        order = [9, 3, 40, 1, 2, 63]
        report = self.succeeds("--runs", 3, "--", vmm, *order, "stay", "--runs")
        self.assertEqual(pages_of(self.list), order)
        self.assertEqual(report["pages"], len(order))
        self.assertEqual(report["pages_in_all_runs"], len(order))
        self.assertEqual(report["format"], "hpl2")
        self.assertEqual([run["window_end"] for run in report["runs"]], ["settled"] * 3)
        self.assertEqual(self.list.read_bytes()[:4], b"HPL2")

    def test_the_window_ends_when_the_guest_is_ready(self):
        report = self.succeeds("--runs", 2, "--settle", 0, "--", vmm, 5, 4, "ready", 7, "stay")
        self.assertEqual([run["window_end"] for run in report["runs"]], ["ready"] * 2)
        self.assertEqual(pages_of(self.list), [5, 4])

    def test_the_window_ends_with_its_time(self):
        report = self.succeeds("--runs", 1, "--settle", 0, "--window-timeout", 1, "--", vmm, 5, 4, 6, "stay")
        self.assertEqual(report["runs"][0]["window_end"], "timeout")
        # The kernel's recording, where there is one, ends with that very time.
        if report["runs"][0]["tier"] != "loop":
            self.assertEqual(report["runs"][0]["window_ms"], 1000)
        self.assertEqual(pages_of(self.list), [5, 4, 6])

    def test_a_command_that_ends_by_itself_ends_its_run(self):
        report = self.succeeds("--runs", 2, "--", vmm, 8, 2)
        self.assertEqual([run["window_end"] for run in report["runs"]], ["gone"] * 2)
        self.assertEqual(pages_of(self.list), [8, 2])

    def test_a_command_is_waited_for(self):
        report = self.succeeds("--runs", 1, "--wait", "--", vmm, 8, "ready", 2, f"log={directory}/waited")
        self.assertEqual(report["runs"][0]["window_end"], "ready")
        self.assertTrue((directory / "waited").exists())
        self.assertEqual(pages_of(self.list), [8])

    def test_a_page_of_one_run_in_four_is_at_the_end(self):
        script = f'test -e {directory}/first || extra=50; touch {directory}/first; exec {vmm} 1 $extra 2 3'
        report = self.succeeds("--runs", 4, "--", "sh", "-c", script)
        self.assertEqual(pages_of(self.list), [1, 2, 3, 50])
        self.assertEqual((report["pages_in_all_runs"], report["rare_pages"]), (3, 1))

    def test_the_templates_own_list(self):
        own = directory / "own.hpl2"
        body = {"name": "owner", "memory": str(image), "hot_list": str(own)}
        self.assertEqual(server.call("POST", "/v1/templates", body).status, 201)
        report = self.succeeds("--runs", 1, "--", vmm, 3, 1, output=False, template="owner")
        self.assertEqual(report["list"], str(own))
        self.assertEqual(pages_of(own), [3, 1])

    def test_text_and_standard_output(self):
        status, output, errors = finish(start("-o", "-", "--format", "csv", "--runs", 1, "--", vmm, 3, 1))
        self.assertEqual(status, 0, errors)
        rows = output.splitlines()
        self.assertTrue(rows[0].startswith("region,offset,first_touch_ns,seen"), rows)
        self.assertEqual([row.split(",")[1] for row in rows[1:]], [str(3 * PAGE), str(PAGE)])
        self.assertIn("2, 8 KiB", errors)
        status, output, errors = finish(start("-o", self.list, "--runs", 2, "--", vmm, *range(40)))
        self.assertEqual(status, 0, errors)
        for word in ("run 2", "40 of them in all runs", "order", "agree", "hpl2"):
            self.assertIn(word, output)

    def test_what_the_command_finds_in_its_environment(self):
        seen = directory / "seen"
        script = f'cd /; env > {seen}; cat >> {seen}; exec {vmm} 1'
        self.succeeds("--runs", 1, "--", "sh", "-c", script)
        variables = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
        self.assertEqual(variables["FAULTLINE_RUN_DIR"], server.run_dir)
        self.assertEqual(variables["FAULTLINE_MEMORY"], str(image))
        self.assertTrue(variables["FAULTLINE_SOCKET"].startswith(server.run_dir))
        self.assertTrue(variables["FAULTLINE_FORK"])

    def test_cold_and_warm_runs(self):
        """The server has the image mapped: so it is a copy that is cold."""
        report = self.succeeds("--runs", 3, "--vary-cache", "--", vmm, 3, 1, 60)
        self.assertEqual([run["cold"] for run in report["runs"]], [True, False, True])
        self.assertEqual(pages_of(self.list), [3, 1, 60])
        left = [run["left_in_cache"] for run in report["runs"]]
        self.assertIsNone(left[1])
        if subprocess.check_output(["stat", "-f", "-c", "%T", temporary], text=True).strip() != "tmpfs":
            self.assertEqual((left[0], left[2]), (0, 0))

    def test_no_room_for_a_cold_copy(self):
        with unittest.mock.patch.dict(os.environ, TMPDIR=str(directory / "no-directory")):
            status, _, errors = finish(start("-o", self.list, "--vary-cache", "--", vmm, 1))
        self.assertEqual(status, 1)
        self.assertIn("TMPDIR", errors)

    def test_a_list_of_a_warm_up_serves_the_next_fork(self):
        self.succeeds("--runs", 2, "--", vmm, 3, 1, 60)
        body = {"template": "base", "id": "next", "prefetch": "eager", "hot_list": str(self.list)}
        fork = server.call("POST", "/v1/forks", body).json
        environment = {**os.environ, "FAULTLINE_SOCKET": fork["socket"], "FAULTLINE_RUN_DIR": server.run_dir, "FAULTLINE_FORK": "next"}
        process = subprocess.Popen([vmm, f"log={directory}/next", "stay"], env=environment)
        try:
            self.assertEqual(server.call("GET", "/v1/forks/next/wait?for=prefetched").json["prefetched_pages"], 3)
        finally:
            server.call("DELETE", "/v1/forks/next?force=true")
            process.kill()
            process.wait()


class Failures(Warmup):
    def test_commands_that_can_not_be_started(self):
        self.fails("--", "no-such-command", words=["no-such-command", "PATH"])
        self.fails("--", "no-such-command", code="command_unknown")
        self.fails("--", "/no/such/file", words=["/no/such/file", "no such file"])
        self.fails("--", directory, words=[str(directory), "Permission denied"])

    def test_no_vmm_connects(self):
        self.fails("--", "true", words=["run 1", "'true' exited with status 0", "$FAULTLINE_SOCKET"])
        self.fails("--", "sh", "-c", "exit 7", words=["run 1", "'sh' exited with status 7"])
        self.fails("--", "sh", "-c", "kill -SEGV $$", words=["killed by signal 11"])
        self.fails("--connect-timeout", 0.5, "--", "sleep", 1000, words=["no VMM connected within 0.5 s"], )
        self.fails("--connect-timeout", 0.5, "--", "sleep", 1000, code="not_connected")

    def test_a_handshake_that_is_refused_is_quoted(self):
        script = ('import os, socket, time\ns = socket.socket(socket.AF_UNIX)\ns.connect(os.environ["FAULTLINE_SOCKET"])\n'
                  's.send(b"[]")\ns.recv(1)')
        self.fails("--", sys.executable, "-c", script, words=["run 1", "refused its last try"])

    def test_a_command_that_fails_after_it_has_connected(self):
        self.fails("--", vmm, 1, "exit=3", words=["run 1", "exited with status 3"])
        self.fails("--", "sh", "-c", f"{vmm} 1 2; exit 4", words=["exited with status 4"])
        self.fails("--wait", "--", vmm, 1, "ready", "exit=5", words=["exited with status 5 after its window had ended"])

    def test_the_second_run_fails(self):
        script = f"test -e {directory}/once && exit 9; touch {directory}/once; exec {vmm} 1"
        self.fails("--", "sh", "-c", script, words=["run 2", "status 9"])

    def test_no_page_is_touched(self):
        self.fails("--window-timeout", 0.5, "--", vmm, "stay", words=["run 1 touched no page"])
        self.fails("--", vmm, "ready", "stay", code="no_pages")

    def test_lists_that_can_not_be_written(self):
        path = directory / "no-directory" / "list"
        status, _, errors = finish(start("-o", path, "--", "touch", directory / "was-started"))
        self.assertEqual(status, 1)
        self.assertIn(str(path), errors)
        # Before any time was spent.
        self.assertFalse((directory / "was-started").exists())
        status, _, errors = finish(start("--", vmm, 1))
        self.assertEqual(status, 1)
        self.assertIn("-o LIST", errors)

    def test_lines_that_make_no_sense(self):
        for arguments in (["--runs", 0], ["--runs", "x"], ["--runs", 1001], ["--settle", "-1"], ["--window-timeout", "1e9"],
                          ["--grace", "nan"], ["--vary-cache", "--runs", 1], ["--format", "hpl3"]):
            with self.subTest(arguments=arguments):
                self.fails(*arguments, "--", "true", status=2, words=["faultline warmup --help"])
        self.fails(status=2, words=["COMMAND"])

    def test_no_template_and_no_server(self):
        status, _, errors = finish(start("-o", self.list, "--", "true", template="other"))
        self.assertEqual(status, 4, errors)
        self.fails("--run-dir", directory / "nowhere", "--", "true", status=3, words=["nowhere"])


class Ends(Warmup):
    def log(self):
        return directory / f"{self._testMethodName}.log"

    def pids(self):
        """Of a command and its VMM, once they have said so."""
        wait_for(lambda: self.log().exists() and len(self.log().read_text().split()) == 2)
        return [int(word) for word in self.log().read_text().split()]

    def interrupt(self, number):
        self.list.write_bytes(b"as it was")
        process = start("-o", self.list, "--settle", 0, "--", vmm, 1, f"log={self.log()}", "stay")
        pids = self.pids()
        process.send_signal(number)
        status, _, errors = finish(process)
        self.assertEqual((status, errors), (128 + number, ""))
        self.assertEqual(self.list.read_bytes(), b"as it was")
        self.assertTrue(all(map(is_gone, pids)))

    def test_interrupted(self):
        self.interrupt(signal.SIGINT)

    def test_terminated(self):
        self.interrupt(signal.SIGTERM)

    def test_interrupted_before_a_vmm_has_connected(self):
        process = start("-o", self.list, "--", "sh", "-c", f"echo $$ $$ > {self.log()}; exec sleep 1000")
        pids = self.pids()
        process.send_signal(signal.SIGINT)
        self.assertEqual(finish(process)[0], 128 + signal.SIGINT)
        self.assertTrue(all(map(is_gone, pids)))
        self.assertFalse(self.list.exists())

    def test_a_command_that_does_not_want_to_end(self):
        self.succeeds("--runs", 1, "--grace", 0.5, "--", vmm, "stubborn", 1, f"log={self.log()}", "ready", "stay")
        self.assertTrue(all(map(is_gone, self.pids())))

    def test_what_a_command_leaves_in_the_background_is_ended(self):
        script = f"{vmm} 1 2 log={self.log()} stay & while ! test -s {self.log()}; do sleep 0.05; done"
        report = self.succeeds("--runs", 1, "--", "sh", "-c", script)
        self.assertEqual(report["runs"][0]["window_end"], "gone")
        self.assertEqual(pages_of(self.list), [1, 2])
        self.assertTrue(all(map(is_gone, self.pids())))

    def test_killed(self):
        process = start("-o", self.list, "--settle", 0, "--", vmm, 1, f"log={self.log()}", "stay")
        command, guest = self.pids()
        process.kill()
        process.communicate()
        wait_for(lambda: is_gone(command))
        # Its VMM's stdin has ended, and so does it.
        wait_for(lambda: is_gone(guest))
        for fork in server.call("GET", "/v1/forks").json["forks"]:
            server.call("DELETE", f"/v1/forks/{fork['id']}?force=true")

    def test_the_fork_is_removed_by_somebody(self):
        process = start("-o", self.list, "--settle", 0, "--", vmm, 1, f"log={self.log()}", "stay")
        pids = self.pids()
        for fork in server.call("GET", "/v1/forks").json["forks"]:
            server.call("DELETE", f"/v1/forks/{fork['id']}?force=true")
        status, _, errors = finish(process)
        self.assertIn(status, (1, 4))
        self.assertIn("fork", errors)
        self.assertTrue(all(map(is_gone, pids)))
        self.assertFalse(self.list.exists())


class ServerGone(Warmup):
    """Runs last: the server of the others goes with it."""

    def test_the_server_goes_away(self):
        log = directory / "server-gone.log"
        process = start("-o", self.list, "--settle", 0, "--", vmm, 1, f"log={log}", "stay")
        wait_for(log.exists)
        ended = threading.Thread(target=server.process.wait)
        ended.start()
        server.process.send_signal(signal.SIGTERM)
        status, _, errors = finish(process)
        self.assertIn(status, (1, 3), errors)
        self.assertTrue(errors)
        self.assertFalse(self.list.exists())
        ended.join(DEADLINE_S)


if __name__ == "__main__":
    unittest.main(verbosity=2, warnings="ignore")  # of sockets that http.client leaves to be collected
