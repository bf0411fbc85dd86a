#!/usr/bin/python3
"""`faultline profile`: what VMs touch that map their image themselves, started or running; its ends, and the setting that it puts back."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from api_client import DEADLINE_S, PAGE, skip, wait_for  # noqa: E402

BINARY = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")
VMM = HERE / "plain_vmm.py"
PAGES = 1024
# A traced command takes its time where the machine is busy.
PATIENCE_S = 3 * DEADLINE_S
# Further apart than the kernel maps neighbours, so that each is seen whatever fault-around is.
ORDER = [5, 700, 300, 64, 1000, 128]
WRITTEN = [5, 6, 7, 4, 300, 299]


def setUpModule():
    global directory, image
    if os.geteuid() != 0:
        skip("needs root, for BPF")
    report = json.loads(subprocess.run([BINARY, "doctor", "--json"], capture_output=True, timeout=DEADLINE_S).stdout)
    if report["summary"]["observation"]["tier"] == "none":
        skip(f"no tier of observation works here: {report['summary']['observation']['why']}")
    temporary = tempfile.TemporaryDirectory(prefix="faultline-profile.")
    unittest.addModuleCleanup(temporary.cleanup)
    directory = pathlib.Path(temporary.name)
    image = directory / "image"
    write_in_pieces(image, PAGE)
    # Larger than any file that a Python maps, and smaller than the image.
    (directory / "other").write_bytes(bytes(2 << 20))


def write_in_pieces(path, size):
    """The page cache may keep together what was written together, and then the kernel maps that at one touch."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(0, PAGES * PAGE, size):
            file.write(os.urandom(size))


def words(pages, letter=""):
    return ",".join(f"{letter}{page}" for page in pages)


def start(*arguments, prefix=()):
    return subprocess.Popen([*prefix, BINARY, "profile", *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def finish(process):
    try:
        output, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"`{' '.join(process.args)}` hangs: {process.communicate()}") from None
    return process.returncode, output, errors


def entries_of(path):
    text = subprocess.run([BINARY, "hotlist", "convert", str(path), "-", "--to", "json"], check=True, capture_output=True,
                          timeout=DEADLINE_S).stdout
    return json.loads(text)


def pages_of(path):
    return [(entry["region"], entry["offset"] // PAGE) for entry in entries_of(path)["pages"]]


class Profile(unittest.TestCase):
    def setUp(self):
        self.list = directory / f"{self._testMethodName}.hpl2"

    def succeeds(self, *arguments):
        status, output, errors = finish(start("-o", self.list, "--json", *arguments))
        self.assertEqual(status, 0, errors)
        return json.loads(output)

    def fails(self, *arguments, status=1, says=(), prefix=()):
        self.list.write_bytes(b"as it was")
        got, _, errors = finish(start("-o", self.list, *arguments, prefix=prefix))
        self.assertEqual(got, status, errors)
        for word in says:
            self.assertIn(word, errors)
        self.assertEqual(self.list.read_bytes(), b"as it was")


class Started(Profile):
    def test_a_command(self):
        report = self.succeeds("--memory", image, "--", VMM, image, "--pages", words(ORDER))
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])
        self.assertEqual((report["window_end"], report["memory"], report["memory_guessed"]), ("gone", str(image), False))
        self.assertEqual(report["present_before"], 0)
        origin = entries_of(self.list)["origin"]
        self.assertEqual((origin["image_size"], origin["runs"]), (PAGES * PAGE, 1))
        self.assertEqual(origin["tier"], report["tier"])

    def test_writes_are_seen_page_by_page(self):
        self.succeeds("--memory", image, "--", VMM, image, "--pages", words(WRITTEN, "w"))
        self.assertEqual(pages_of(self.list), [(0, page) for page in WRITTEN])

    def test_a_shared_image(self):
        self.succeeds("--memory", image, "--", VMM, image, "--shared", "--pages", words(ORDER))
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])

    def test_an_image_in_pieces(self):
        report = self.succeeds("--memory", image, "--", VMM, image, "--pieces", 2, "--pages", words(ORDER))
        self.assertEqual(report["regions"], 2)
        self.assertEqual(pages_of(self.list), [(page * 2 // PAGES, page % (PAGES // 2)) for page in ORDER])

    def test_no_touch_is_missed_behind_a_shell(self):
        script = f"sh -c '{VMM} {directory}/other --pages 1,2' && {VMM} {image} --pages {words(ORDER)}; true"
        self.succeeds("--memory", image, "--", "sh", "-c", script)
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])

    def test_the_image_is_guessed(self):
        report = self.succeeds("--", VMM, image, "--pages", words(ORDER))
        self.assertEqual((report["memory"], report["memory_guessed"]), (str(image), True))
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])

    def test_it_settles_and_the_command_is_ended(self):
        report = self.succeeds("--memory", image, "--settle", 0.5, "--", VMM, image, "--pages", words(ORDER), "--then", "stay")
        self.assertEqual(report["window_end"], "settled")
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])
        self.assertFalse(os.path.exists(f"/proc/{report['pid']}"))

    def test_its_time_is_over(self):
        report = self.succeeds("--memory", image, "--settle", 0, "--duration", 0.7, "--", VMM, image, "--pages", words(ORDER), "--then", "stay")
        self.assertEqual(report["window_end"], "duration")
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])

    def test_two_profiles_are_merged(self):
        lists = [directory / f"{number}.hpl2" for number in range(3)]
        for path in lists[:2]:
            self.list = path
            self.succeeds("--memory", image, "--", VMM, image, "--pages", words(ORDER))
        subprocess.run([BINARY, "hotlist", "merge", "-o", lists[2], *lists[:2]], check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE_S)
        self.assertEqual(pages_of(lists[2]), [(0, page) for page in ORDER])

    def test_what_it_says(self):
        status, output, errors = finish(start("-o", self.list, "--memory", image, "--", VMM, image, "--pages", words(ORDER)))
        self.assertEqual(status, 0, errors)
        for word in (f"{len(ORDER)}, 24 KiB", str(image), "until its end", "seen    by"):
            self.assertIn(word, output)
        self.assertIn("fault-around", output)

    def test_an_image_in_large_pieces_of_the_page_cache(self):
        """Whatever this kernel makes of them: what was mapped and not seen is told."""
        large = directory / "large"
        write_in_pieces(large, PAGES * PAGE)
        gate = directory / "large.gate"
        os.mkfifo(gate)
        report = self.succeeds("--memory", large, "--settle", 0.5, "--", VMM, large, "--pages", words(range(0, PAGES, 8)), "--then", "stay")
        seen = len(pages_of(self.list))
        self.assertGreaterEqual(report["mapped_pages"], seen)
        self.assertGreaterEqual(report["mapped_pages"], PAGES // 8)


class Running(Profile):
    """A VMM that runs already, and stands at a gate until it is told to go on."""

    def setUp(self):
        super().setUp()
        self.gate = directory / f"{self._testMethodName}.gate"
        os.mkfifo(self.gate)
        self.vmm = None

    def tearDown(self):
        if self.vmm:
            self.vmm.kill()
            self.vmm.communicate()

    def start_vmm(self, *arguments):
        self.vmm = subprocess.Popen([VMM, image, "--gate", self.gate, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        wait_for(lambda: str(image) in pathlib.Path(f"/proc/{self.vmm.pid}/maps").read_text())

    def is_observed(self, profile):
        """The profile has its programs' reader, which there is once something is attached."""
        def names():
            tasks = pathlib.Path(f"/proc/{profile.pid}/task")
            return [(task / "comm").read_text().strip() for task in tasks.iterdir()]
        wait_for(lambda: "observer" in names())

    def test_touches_from_now_on(self):
        self.start_vmm("--pages", words(ORDER), "--then", "stay")
        profile = start("--pid", self.vmm.pid, "-o", self.list, "--json", "--settle", 0.5)
        self.is_observed(profile)
        self.gate.write_bytes(b"")
        status, output, errors = finish(profile)
        self.assertEqual(status, 0, errors)
        report = json.loads(output)
        self.assertEqual((report["window_end"], report["memory"]), ("settled", str(image)))
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])
        # It is not ours to end.
        self.assertIsNone(self.vmm.poll())

    def test_until_it_ends(self):
        self.start_vmm("--pages", words(ORDER))
        profile = start("--pid", self.vmm.pid, "--memory", image, "-o", self.list, "--json", "--settle", 0)
        self.is_observed(profile)
        self.gate.write_bytes(b"")
        status, output, errors = finish(profile)
        self.assertEqual(status, 0, errors)
        self.assertEqual(json.loads(output)["window_end"], "gone")
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])

    def test_until_ctrl_c(self):
        self.start_vmm("--pages", words(ORDER), "--then", "stay")
        profile = start("--pid", self.vmm.pid, "-o", self.list, "--json", "--settle", 0)
        self.is_observed(profile)
        self.gate.write_bytes(b"")
        self.assertEqual(self.vmm.stdout.readline(), "touched\n")
        profile.send_signal(signal.SIGINT)
        status, output, errors = finish(profile)
        self.assertEqual(status, 0, errors)
        self.assertEqual(json.loads(output)["window_end"], "interrupted")
        self.assertEqual(pages_of(self.list), [(0, page) for page in ORDER])

    def test_terminated(self):
        self.start_vmm("--pages", words(ORDER), "--then", "stay")
        profile = start("--pid", self.vmm.pid, "-o", self.list, "--settle", 0)
        self.is_observed(profile)
        profile.send_signal(signal.SIGTERM)
        self.assertEqual(finish(profile), (128 + signal.SIGTERM, "", ""))
        self.assertFalse(self.list.exists())

    def test_what_was_touched_before_is_counted(self):
        self.vmm = subprocess.Popen([VMM, image, "--pages", words(WRITTEN, "w"), "--then", "stay"], stdout=subprocess.PIPE, text=True)
        self.assertEqual(self.vmm.stdout.readline(), "touched\n")
        self.fails("--pid", self.vmm.pid, "--duration", 0.3, "--settle", 0, says=["was not seen to touch any page", str(image)])


class Failures(Profile):
    def test_commands_that_come_to_nothing(self):
        self.fails("--memory", image, "--", "true", says=["'true' exited with status 0", "mapped"])
        self.fails("--", "true", says=["'true' exited with status 0", "mapped"])
        self.fails("--memory", image, "--", "sh", "-c", "exit 3", says=["exited with status 3"])
        self.fails("--memory", image, "--", "no-such-command", says=["no-such-command", "PATH"])
        self.fails("--memory", image, "--map-timeout", 0.5, "--", "sleep", 1000, says=["'sleep'", str(image), "0.5 s"])
        self.fails("--memory", directory / "nothing", "--", "true", says=["nothing", "No such file"])

    def test_a_command_that_fails_in_the_end(self):
        self.fails("--memory", image, "--", VMM, image, "--pages", words(ORDER), "--exit-status", 4, says=["exited with status 4"])

    def test_processes_that_are_none(self):
        process = subprocess.Popen(["true"])
        process.wait()
        self.fails("--pid", process.pid, says=[f"no process {process.pid}"])
        self.fails("--pid", os.getpid(), "--memory", image, says=["has not mapped", str(image)])

    def test_lines_that_make_no_sense(self):
        for arguments in ([], ["--pid", 1, "--", "true"], ["--pid", "x"], ["--pid", 0], ["--pid", 1, "--wait"], ["--duration", "x", "--", "true"],
                          ["--fault-around", "two", "--", "true"]):
            with self.subTest(arguments=arguments):
                self.fails(*arguments, status=2, says=["faultline profile --help"])

    def test_without_capabilities(self):
        prefix = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-bpf,-perfmon,-sys_admin"]
        self.fails("--memory", image, "--", VMM, image, "--pages", "1", prefix=prefix, says=["CAP_BPF and CAP_PERFMON are missing"])

    def test_killed(self):
        """Neither the command nor what it waits for outlives us."""
        marker = directory / "killed"
        profile = start("-o", self.list, "--memory", image, "--settle", 0, "--", "sh", "-c",
                        f"echo $$ > {marker}; exec {VMM} {image} --pages 1 --then stay")
        wait_for(lambda: marker.exists() and marker.read_text().strip())
        profile.kill()
        profile.communicate()
        wait_for(lambda: not os.path.exists(f"/proc/{marker.read_text().strip()}"))


class FaultAround(Profile):
    """In a view of the file system in which a file of ours stands for the kernel's setting: what is written there, and when."""

    def setUp(self):
        super().setUp()
        self.debug = directory / f"{self._testMethodName}.debugfs"
        self.debug.mkdir()
        self.setting = self.debug / "fault_around_bytes"
        self.setting.write_text("65536\n")
        self.seen = directory / f"{self._testMethodName}.seen"
        self.prefix = ["unshare", "-m", "sh", "-c", f'mount --bind {self.debug} /sys/kernel/debug && exec "$0" "$@"']

    def value(self):
        return int(self.setting.read_text().split()[0])

    def start_one(self, *options, then="cat"):
        script = f"{VMM} {image} --pages {words(ORDER)}; cat {self.setting} > {self.seen}; {then}"
        return start("-o", self.list, "--json", "--memory", image, "--settle", 0, *options, "--", "sh", "-c", script, prefix=self.prefix)

    def test_one_page_meanwhile(self):
        status, output, errors = finish(self.start_one(then="true"))
        self.assertEqual(status, 0, errors)
        report = json.loads(output)
        self.assertEqual((report["fault_around"]["bytes"], report["fault_around"]["set"]), (PAGE, True))
        self.assertEqual(self.value(), 65536)

    def test_kept(self):
        status, output, errors = finish(self.start_one("--fault-around", "keep", then="true"))
        self.assertEqual(status, 0, errors)
        self.assertEqual(json.loads(output)["fault_around"], {"bytes": 65536, "set": False, "why": None})
        self.assertEqual((int(self.seen.read_text().split()[0]), self.value()), (65536, 65536))

    def ended(self, number):
        gate = directory / f"{self._testMethodName}.gate"
        os.mkfifo(gate)
        profile = start("-o", self.list, "--memory", image, "--settle", 0, "--", VMM, image, "--gate", gate, "--then", "stay", prefix=self.prefix)
        wait_for(lambda: self.value() == PAGE)
        profile.send_signal(number)
        profile.communicate(timeout=PATIENCE_S)
        wait_for(lambda: self.value() == 65536)

    def test_interrupted(self):
        self.ended(signal.SIGTERM)

    def test_killed(self):
        self.ended(signal.SIGKILL)

    def test_another_profile_has_it(self):
        with open(self.setting, "rb") as file:
            import fcntl  # pylint: disable=import-outside-toplevel
            fcntl.flock(file, fcntl.LOCK_EX)
            status, output, errors = finish(self.start_one(then="true"))
        self.assertEqual(status, 0, errors)
        self.assertIn("another profile", json.loads(output)["fault_around"]["why"])
        self.assertEqual(self.value(), 65536)


if __name__ == "__main__":
    unittest.main(verbosity=2, warnings="ignore")
