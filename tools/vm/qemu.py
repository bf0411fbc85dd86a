"""Drives QEMU: boots a template, snapshots it, and starts forks of the snapshot, with or without the page server."""
import dataclasses
import hashlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time

from .guest import Guest

QEMU = "qemu-system-x86_64"
MEMORY_SIZE = 512 << 20
TIMEOUT = 120  # seconds for anything a guest or QEMU is asked; TCG on a loaded machine is slow, a hang is longer
CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},  # the memory stays in its file: the state holds the devices alone
    {"capability": "events", "state": True},
]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a template and its forks run on."""

    accelerator: str = "tcg"  # or "kvm"
    cpu: str = "max"
    memory: int = MEMORY_SIZE  # bytes
    cpus: int = 2


class VmError(Exception):
    """Says which VM failed at what, with what it had to say."""


class Lines:
    """Reads and writes lines on a connected socket, with a time limit. EXPLAIN() gives what else may tell why it failed."""

    def __init__(self, sock, name, explain):
        self.sock, self.name, self.explain = sock, name, explain
        self.buffer = b""
        self.heard = []

    def write(self, line):
        try:
            self.sock.sendall(line.encode() + b"\n")
        except OSError as error:
            raise self._failure(f"hung up ({error})") from None

    def read(self, timeout=TIMEOUT):
        deadline = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.sock], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise self._failure(f"said nothing for {timeout} s")
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._failure("hung up")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        text = line.decode(errors="replace").strip()
        self.heard = [*self.heard[-4:], text]
        return text

    def _failure(self, what):
        said = self.explain()
        return VmError(
            f"{self.name} {what}; its last lines: {' | '.join(self.heard) or 'none'}{f'; on stderr: {said}' if said else ''}"
        )


class Qmp:
    """QEMU's control protocol over a connected socket."""

    def __init__(self, lines):
        self.lines = lines
        self.events = []

    def greet(self):
        self._next()
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}))
        while True:
            message = self._next()
            if "error" in message:
                raise VmError(f"{self.lines.name}: {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
            self.events.append(message)

    def wait_event(self, name, matches):
        """The data of the first event of that name for which MATCHES(data) holds."""
        while True:
            message = self.events.pop(0) if self.events else self._next()
            if message.get("event") == name and matches(message.get("data", {})):
                return message["data"]

    def wait_migrated(self):
        data = self.wait_event("MIGRATION", lambda data: data["status"] in ("completed", "failed"))
        if data["status"] == "failed":
            raise VmError(f"{self.lines.name}: the migration failed")

    def _next(self):
        return json.loads(self.lines.read())


class Vm:
    """One QEMU process. Start it from the main thread (it dies with the thread that started it); use it from any one."""

    def __init__(self, guest, memory, log, *, name, share=False, incoming=False, environment=None, options=(), hardware=Hardware()):
        self.name, self.log = name, pathlib.Path(log)
        serial, serial_theirs = socket.socketpair()
        qmp, qmp_theirs = socket.socketpair()
        command = [
            "setpriv", "--pdeathsig", "KILL", "--",  # nobody is left behind, even if this process is killed
            QEMU, "-name", name, "-nodefaults", "-display", "none", "-no-reboot", "-accel", hardware.accelerator, "-cpu", hardware.cpu,
            "-smp", str(hardware.cpus), "-m", f"{hardware.memory >> 20}M", "-machine", "pc,memory-backend=m",
            "-object", f"memory-backend-file,id=m,size={hardware.memory},mem-path={memory},share={'on' if share else 'off'}",
            "-kernel", guest.kernel, "-initrd", guest.initrd,
            "-append", "console=ttyS0 panic=-1 quiet mitigations=off nokaslr",
            "-chardev", f"socket,id=serial,fd={serial_theirs.fileno()}", "-serial", "chardev:serial",
            "-chardev", f"socket,id=qmp,fd={qmp_theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
            "-device", "virtio-balloon-pci,id=balloon",
            *(["-incoming", "defer"] if incoming else []), *options,
        ]  # fmt: skip
        self.serial = Lines(serial, f"the guest of {name}", self.said)
        self.qmp = Qmp(Lines(qmp, f"QEMU of {name}", self.said))
        self.hardware = hardware
        self.spawned = time.monotonic()
        self.resumed = None
        with open(self.log, "wb") as stderr:
            try:
                self.process = subprocess.Popen(
                    command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                    pass_fds=[serial_theirs.fileno(), qmp_theirs.fileno()], start_new_session=True,
                )  # fmt: skip
            except FileNotFoundError as error:
                raise VmError(f"{error.filename} is not installed: run tools/setup") from None
        serial_theirs.close()
        qmp_theirs.close()

    @property
    def pid(self):
        return self.process.pid

    def prepare_incoming(self):
        self.qmp.greet()
        self.qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)

    def load(self, state):
        """Loads the devices' state; the guest stands still."""
        self.qmp.execute("migrate-incoming", uri=f"exec:cat {state}")
        self.qmp.wait_migrated()

    def resume(self, state):
        """Loads the devices' state and lets the guest run."""
        self.load(state)
        self.resumed = time.monotonic()
        self.qmp.execute("cont")

    def ask(self, command, timeout=TIMEOUT):
        """The guest's answer to a command, without the command's name."""
        self.serial.write(command)
        line = self.serial.read(timeout)
        verb = command.split()[0]
        if not line.startswith(verb + " "):
            raise VmError(f"the guest of {self.name} answered `{line}` to `{command}`")
        return line[len(verb) + 1 :]

    def wait_booted(self):
        while self.serial.read() != "ready":
            pass  # the kernel may have something to say first

    def said(self):
        """What QEMU and the preload library wrote to stderr."""
        return self.log.read_text(errors="replace").strip()

    def stop(self):
        """Ends QEMU, whatever it is doing. Stopping twice is fine."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.serial.sock.close()
        self.qmp.lines.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A template: a guest that stands still, ready to be forked."""

    guest: Guest
    memory: pathlib.Path
    state: pathlib.Path
    digest: str  # of the memory image
    hardware: Hardware = Hardware()

    def intact(self):
        return file_digest(self.memory) == self.digest


def file_digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def boot(guest, directory, hardware=Hardware()):
    """Starts the guest that will be the template; `wait_booted`, then `snapshot`."""
    directory = pathlib.Path(directory)
    return Vm(guest, directory / "memory", directory / "template.log", name="template", share=True, hardware=hardware)


def snapshot(vm, guest, directory):
    """Stops the guest where it is and ends its QEMU; its memory and state remain as files."""
    directory = pathlib.Path(directory)
    memory, state = directory / "memory", directory / "state"
    vm.qmp.greet()
    vm.qmp.execute("stop")
    vm.qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
    vm.qmp.execute("migrate", uri=f"exec:cat > {state}")
    vm.qmp.wait_migrated()
    vm.stop()
    return Snapshot(guest, memory, state, file_digest(memory), vm.hardware)


def fork(template, directory, name, *, preload=None, uffd_socket=None, options=()):
    """Starts a fork's QEMU, which then waits for `resume`. With UFFD_SOCKET its memory comes from the page server."""
    environment = {}
    if uffd_socket:
        environment = {"LD_PRELOAD": str(preload), "FAULTLINE_SOCKET": str(uffd_socket), "FAULTLINE_MEMORY": str(template.memory)}
    return Vm(template.guest, template.memory, pathlib.Path(directory) / f"{name}.log", name=name, incoming=True,
              environment=environment, options=options, hardware=template.hardware)  # fmt: skip
