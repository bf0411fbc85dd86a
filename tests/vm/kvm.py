"""What the tests of guests under KVM share: images, scripts for the tiny VMM, and the truth that it tells."""
import csv
import io
import itertools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["FAULTLINE_SOURCE"])
sys.path.insert(0, str(SOURCE / "tools"))
from vm.server import Server, finish  # noqa: E402

BINARY, TINY_VMM = os.environ["FAULTLINE"], os.environ.get("FAULTLINE_TINY_VMM")
PAGE = 4096
TIMEOUT = 120  # seconds for a guest; a hang is longer
RETURN = 0xC3  # an image page begins with this, so that the guest can run it


def require():
    """Ends the test as skipped where there is no KVM to run a guest with."""
    if os.geteuid() != 0:
        skip("userfaultfd for a VM's memory needs root")
    if not TINY_VMM:
        skip("the tiny VMM is for x86_64")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        skip("there is no /dev/kvm")


def require_known_kernel():
    """The same where it isn't known that the kernel has all tiers, and that its KVM tells of guests' touches: one that emulates them doesn't."""
    require()
    if not os.environ.get("FAULTLINE_KNOWN_KERNEL"):
        skip("this is for the kernels that tools/vm/run-in-kernel --kvm runs")


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def make_image(path, pages, seed=1):
    """Every page differs, none is zero, and all can be run."""
    content = random.Random(seed)
    with open(path, "wb") as file:
        for _ in range(pages):
            file.write(bytes([RETURN]) + content.randbytes(PAGE - 1))
    return path


def shuffled(pages, seed=2):
    order = list(range(pages))
    random.Random(seed).shuffle(order)
    return order


def deal(order, vcpus=1, wait=None, kinds="rwx"):
    """A script: vCPUs touch the pages in turn. WAIT 'spin' or 'halt': each one waits for its turn; None: nobody waits."""
    lines, done = [], [0] * vcpus
    for index, (page, kind) in enumerate(zip(order, itertools.cycle(kinds))):
        vcpu, before = index % vcpus, (index - 1) % vcpus
        if wait and vcpus > 1 and index > 0:
            lines.append(f"{vcpu} {wait} {before} {done[before]}")
        lines.append(f"{vcpu} {kind} {page}")
        done[vcpu] += 1
    return lines


class Truth:
    """What the tiny VMM said about its guest."""

    def __init__(self, text):
        records = [json.loads(line) for line in text.splitlines()]
        self.start = next(record for record in records if record.get("event") == "start")
        self.end = records[-1]
        self.touches = [record for record in records if "touch" in record]
        self.first = [touch for touch in self.touches if touch["first"]]

    def order(self):
        """(region, offset) of each page in the order of their first touches."""
        return [(touch["region"], touch["offset"]) for touch in self.first]


def start_vmm(image, script, *options, socket=None, **popen):
    """The tiny VMM as a process: the script goes to its stdin unless an option names one."""
    environment = {name: value for name, value in os.environ.items() if name != "FAULTLINE_SOCKET"}
    with tempfile.NamedTemporaryFile("w", suffix=".script", delete=False) as file:
        file.write("\n".join(script) + "\n")
    return subprocess.Popen(
        [TINY_VMM, str(image), "--script", file.name, *options, *(["--socket", socket] if socket else [])],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen,
    )  # fmt: skip


def finish_vmm(process):
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        raise AssertionError(f"the guest did not end; it said: {output[-500:]} {errors}") from None
    finally:
        os.unlink(process.args[process.args.index("--script") + 1])
    if process.returncode != 0:
        raise AssertionError(f"the tiny VMM ended with {process.returncode}: {errors.strip()}")
    return Truth(output)


def run_vmm(image, script, *options, socket=None):
    return finish_vmm(start_vmm(image, script, *options, socket=socket))


class StoppedWell(Server):
    """A server that must end well."""

    def __exit__(self, *_):
        status = self.stop()
        if status != 0:
            raise AssertionError(f"the server ended with {status}: {self.said()}")


class ServedTest(unittest.TestCase):
    """A class's own directory, image, and server with a template of it: starting one takes its time where the kernel is emulated."""

    PAGES = 240
    SERVE = ("--observe", "off")
    ENVIRONMENT = {}

    @classmethod
    def setUpClass(cls):
        cls.directory = pathlib.Path(tempfile.mkdtemp(prefix="faultline-kvm-"))
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.image = make_image(cls.directory / "image", cls.PAGES)
        cls.server = cls.enterClassContext(StoppedWell(BINARY, cls.directory, *cls.SERVE, environment=cls.ENVIRONMENT))
        cls.server.run("template", "add", "base", "--memory", cls.image)
        cls.names = (f"f{number}" for number in itertools.count())

    def create(self, *options):
        """A fork's name and socket."""
        name = next(self.names)
        return name, self.server.run("fork", "create", "base", "--id", name, *options).strip()

    def write_list(self, pages, split=None):
        """A hot list of image pages, in a file."""
        path = self.directory / f"{next(self.names)}.csv"
        rows = [(1, page - split) if split and page >= split else (0, page) for page in pages]
        path.write_text("region,offset\n" + "".join(f"{region},{page * PAGE}\n" for region, page in rows))
        return path


def show_gone(server, fork):
    """What is said of the fork after its VM has ended."""
    return json.loads(finish(server.wait(fork, "gone")))


def kernel_list(server, fork):
    """The rows of what the kernel saw of the fork, in list order, as dictionaries."""
    text = server.run("fork", "hot-list", fork, "--from", "kernel", "--format", "csv", "-o", "-")
    return list(csv.DictReader(io.StringIO(text)))


def order_of(rows):
    return [(int(row["region"]), int(row["offset"])) for row in rows]
