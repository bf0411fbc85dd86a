"""What the tests of `faultline replay` share: running it, traces made for a test, and a page server that is not faultline."""
import array
import csv
import ctypes
import gzip
import json
import mmap
import os
import pathlib
import select
import socket
import struct
import subprocess
import sys
from fcntl import ioctl

SOURCE = pathlib.Path(os.environ["FAULTLINE_SOURCE"])
BINARY = os.environ["FAULTLINE"]
sys.path.insert(0, str(SOURCE / "tools"))

PAGE = 4096
TIMEOUT = 240  # seconds for one command; a hang is longer
HEADER = "ns,instructions,page,vcpu,kind\n"

UFFDIO_COPY = 0xC028AA03
UFFD_MESSAGE = 32  # bytes
UFFD_EVENT_PAGEFAULT = 0x12


def require_root():
    if os.geteuid() != 0:
        print("skipped: userfaultfd for a VM's memory needs root")
        sys.exit(77)


def start(*arguments, temporary):
    """Starts `faultline replay`, with TMPDIR a directory of the test's own."""
    environment = {name: value for name, value in os.environ.items() if name != "FAULTLINE_RUN_DIR"}
    return subprocess.Popen(
        [BINARY, "replay", *map(str, arguments)], env={**environment, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    """(exit status, stdout, stderr) of one that was started."""
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError(f"`{' '.join(process.args)}` hangs") from None
    return process.returncode, output, errors


def replay(*arguments, temporary):
    """The JSON of a replay that must go well."""
    process = start(*arguments, "--json", temporary=temporary)
    status, output, errors = finish(process)
    if status != 0 or errors:
        raise AssertionError(f"`{' '.join(process.args)}` exited with {status}: {errors}")
    return json.loads(output) if output else None


def touches_of(trace):
    """The rows of a trace, as dictionaries of numbers; `kind` stays a letter."""
    opened = gzip.open(trace, "rt") if str(trace).endswith(".gz") else open(trace, encoding="ascii")
    with opened as file:
        return [{key: value if key == "kind" else int(value) for key, value in row.items()} for row in csv.DictReader(file)]


def pages_of(trace):
    return [touch["page"] for touch in touches_of(trace)]


def make_trace(directory, name="made", *, pages=1024, touches=300, vcpus=2, step_ns=20000):
    """A small guest: its vCPUs take turns, every third page it touches has no data, and it goes through memory in leaps."""
    bits = bytearray(b"\xff" * (pages // 8))
    rows = []
    counts = [0] * vcpus
    for number in range(touches):
        page, vcpu = number * 389 % pages, number * 7 // 3 % vcpus
        counts[vcpu] += 2 * step_ns
        rows.append(f"{(number + 1) * 30 * step_ns},{counts[vcpu]},{page},{vcpu},{'rwx'[number % 3]}\n")
        if number % 3 == 1:
            bits[page // 8] &= ~(0x80 >> page % 8)
    trace = pathlib.Path(directory) / f"{name}.csv"
    trace.write_text(HEADER + "".join(rows), encoding="ascii")
    (pathlib.Path(directory) / f"{name}.nonzero.gz").write_bytes(gzip.compress(bytes(bits)))
    return trace


class OtherServer:
    """Takes one VMM as Firecracker's peers do, serves MOST of its faults one by one from an image, and hangs up."""

    def __init__(self, path, image, most):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(TIMEOUT)
        self.image, self.most = image, most
        self.uffd = -1
        self.served = 0

    def run(self):
        connection, _ = self.listener.accept()
        connection.settimeout(TIMEOUT)
        text, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(4))
        descriptors = array.array("i", ancillary[0][2])
        self.uffd = descriptors[0]
        region = json.loads(text)[0]
        with open(self.image, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            while self.served < self.most and self._serve(connection, region, content):
                pass
        connection.close()

    def _serve(self, connection, region, content):
        """One fault; False where the VMM is gone."""
        ready, _, _ = select.select([self.uffd, connection], [], [], TIMEOUT)
        if self.uffd not in ready:
            return False
        message = os.read(self.uffd, UFFD_MESSAGE)
        assert message[0] == UFFD_EVENT_PAGEFAULT, message
        address = struct.unpack_from("Q", message, 16)[0] & ~(PAGE - 1)
        offset = address - region["base_host_virt_addr"] + region["offset"]
        page = ctypes.create_string_buffer(content[offset : offset + PAGE], PAGE)
        ioctl(self.uffd, UFFDIO_COPY, struct.pack("QQQQq", address, ctypes.addressof(page), PAGE, 0, 0))
        self.served += 1
        return True

    def close(self):
        self.listener.close()
        if self.uffd >= 0:
            os.close(self.uffd)
