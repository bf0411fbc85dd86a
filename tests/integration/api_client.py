"""A server of a test's own, and its API called over the control socket: what the Python tests share."""
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

# Far over what a healthy server needs, also under the sanitizers.
DEADLINE_S = 60

PAGES = 64
PAGE = 4096


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=DEADLINE_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        # Without a time limit, since with one Python doesn't wait for room in the socket's queue.
        self.sock.connect(self.path)
        self.sock.settimeout(self.timeout)


class Server:
    """`faultline serve` with ARGUMENTS in a new directory; as a context, it must end by SIGTERM with exit code 0."""

    def __init__(self, *arguments):
        self.arguments = arguments
        self.binary = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")
        if os.geteuid():
            skip("needs root, for userfaultfd")
        self.directory = tempfile.TemporaryDirectory(prefix="faultline-api.")
        self.dir = self.directory.name
        # Of its own name, as pins have it: other tests run meanwhile.
        self.run_dir = os.path.join(self.dir, f"run-{os.getpid()}")
        self.socket = os.path.join(self.run_dir, "control.sock")

    def __enter__(self):
        notify_path = os.path.join(self.dir, "notify.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(notify_path)
            notify.settimeout(DEADLINE_S)
            self.process = subprocess.Popen([self.binary, "serve", "--run-dir", self.run_dir, *self.arguments],
                                            env=dict(os.environ, NOTIFY_SOCKET=notify_path))
            assert "READY=1" in notify.recv(4096).decode().splitlines()
        return self

    def __exit__(self, failure, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE_S)
        self.directory.cleanup()
        if not failure:
            assert code == 0, f"the server ended with {code}"

    def connection(self):
        return UnixConnection(self.socket)

    def call(self, method, target, body=None, connection=None):
        """BODY: bytes as they are, anything else as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = connection or self.connection()
        connection.request(method, target, body)
        return Answer(connection.getresponse())

    def start_wait(self, fork, query):
        """A request whose answer is not read yet."""
        connection = self.connection()
        connection.request("GET", f"/v1/forks/{fork}/wait?{query}")
        return connection

    def connection_threads(self, asleep=False):
        """How many connections the server has a thread for; ASLEEP: that wait for a lock or a condition."""
        tasks, count = f"/proc/{self.process.pid}/task", 0
        for task in os.listdir(tasks):
            try:
                with open(f"{tasks}/{task}/comm", encoding="ascii") as f:
                    if f.read() != "MHD-connection\n":
                        continue
                with open(f"{tasks}/{task}/syscall", encoding="ascii") as f:
                    # futex, on x86_64 and aarch64
                    count += not asleep or f.read().split()[0] in ("202", "98")
            except (FileNotFoundError, ProcessLookupError):
                continue
        return count


def wait_for(condition):
    """For what has no event to wait for: looks ten times a second."""
    never = threading.Event()
    for _ in range(DEADLINE_S * 10):
        if condition():
            return
        never.wait(0.1)
    raise AssertionError("did not happen in time")


def make_image(path):
    """Page N begins with N + 1."""
    with open(path, "wb") as f:
        for page in range(PAGES):
            f.write(struct.pack("<Q", page + 1).ljust(PAGE, b"\0"))


def hpl1(pages):
    def varint(n):
        out = bytearray()
        while n > 0x7F:
            out.append(n & 0x7F | 0x80)
            n >>= 7
        return bytes(out + bytes([n]))
    return b"HPL1" + varint(len(pages)) + b"".join(varint(region) + varint(offset) for region, offset in pages)


def write_file(server, name, data):
    path = os.path.join(server.dir, name)
    with open(path, "wb") as f:
        f.write(data)
    return path
