"""Runs one command on the machine's own files under another kernel, in a QEMU guest without KVM, which every machine has."""
import contextlib
import dataclasses
import os
import pathlib
import re
import resource
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from . import kernel_log

QEMU = "qemu-system-x86_64"
SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
OWN = ("/tmp", "/var/tmp", "/run")  # of the guest's own, empty: what the command must see of the machine's is shown there
STARTS_WITHIN = 120  # seconds; it takes 5 to 10 on an idle machine
LAST_LINES = 40
MARK = "faultline: the job has ended"  # the last record of the kernel's log that counts; kernel-init writes it
# Ports of the guest, numbered from 1 as in kernel-init.
PORTS = ("output", "errors", "log", "control")


class KernelGuestError(Exception):
    """The guest did not start, or ended before the command did; has its last words."""


class LimitReached(KernelGuestError):
    """The command, or the guest, did not end in time."""


@dataclasses.dataclass
class Job:
    """A command and what it needs of the guest."""

    command: list
    directory: pathlib.Path = dataclasses.field(default_factory=pathlib.Path.cwd)
    environment: dict = dataclasses.field(default_factory=dict)
    show: list = dataclasses.field(default_factory=list)  # directories of the machine's that must not be hidden
    scratch: list = dataclasses.field(default_factory=list)  # directories that are empty and writable in the guest
    kvm: bool = False
    memory: int = 1024  # MiB
    cpus: int = 0  # 0: as many as are good for this QEMU
    limit: float = 600  # seconds for the command


@dataclasses.dataclass
class Result:
    status: int  # as a shell counts: 128 + N for signal N
    log: list  # the kernel's, one record a line
    seconds: float  # that the command ran
    started: float  # seconds until it did
    cpu: float  # seconds of CPU time that the whole guest took: what is left of the above where the machine has nothing else to do

    def troubles(self):
        return kernel_log.troubles(self.log)


def runs_cpus_side_by_side():
    """QEMU before 8.1 may translate code on one thread while a CPU on another thread changes it, and keep the old. A kernel changes its own
    code as it goes (static branches, BPF programs): it then meets a breakpoint that is long gone, and dies."""
    said = subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE, check=False, text=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    return bool(version) and (int(version[1]), int(version[2])) >= (8, 1)


def run(kernel, job, output, errors):
    """Runs the job; OUTPUT and ERRORS get what it prints, as bytes, as it comes."""
    if not shutil.which(QEMU):
        raise KernelGuestError(f"{QEMU} is not installed: run tools/setup")
    with tempfile.TemporaryDirectory(prefix="faultline-job-", dir="/tmp") as directory, contextlib.ExitStack() as stack:
        _write_job(job, pathlib.Path(directory))
        guest = _Guest(kernel, job, directory, {"output": output, "errors": errors})
        stack.callback(guest.stop)
        return guest.run()


def _write_job(job, directory):
    shown = {str(pathlib.Path(path).resolve()) for path in (SOURCE, job.directory, *job.show)}
    shown = [path for path in sorted(shown) if path not in ("/", *OWN) and path.startswith(tuple(f"{own}/" for own in OWN))]
    scratch = [str(pathlib.Path(path).resolve()) for path in job.scratch]
    (directory / "shown").write_text("".join(f"{path}\n" for path in shown))
    (directory / "scratch").write_text("".join(f"{path}\n" for path in scratch))
    if job.kvm:
        (directory / "kvm").touch()
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(job.environment.items()))
    (directory / "job").write_text(
        f"{exports}cd -- {shlex.quote(str(job.directory.resolve()))} || exit 125\nexec {shlex.join(map(str, job.command))}\n"
    )


class _Guest:
    def __init__(self, kernel, job, directory, sinks):
        self.job, self.sinks = job, sinks
        self.selector = selectors.DefaultSelector()
        self.sockets, self.buffers = {}, {}
        self.console = b""
        self.log, self.status, self.broken = b"", None, None
        self.spawned, self.started = time.monotonic(), None

        side_by_side = runs_cpus_side_by_side()
        # Of two CPUs that take turns, each has to spin away its turn when it waits for the other: one is many times faster.
        cpus = job.cpus or (2 if side_by_side else 1)
        # no_timer_check: on a busy machine the timer may seem not to work, and the kernel would stop there.
        append = f"console=ttyS0 panic=-1 quiet mitigations=off nokaslr no_timer_check FAULTLINE_JOB={directory}"
        command = [
            "setpriv", "--pdeathsig", "KILL", "--", QEMU, "-name", "kernel", "-nodefaults", "-display", "none", "-no-reboot",
            "-accel", f"tcg,thread={'multi' if side_by_side else 'single'}", "-cpu", "max,+svm,+npt" if job.kvm else "max",
            "-smp", str(cpus), "-m", f"{job.memory}M", "-kernel", kernel.image, "-initrd", kernel.initrd, "-append", append,
            "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-serial-pci,max_ports=8",
        ]  # fmt: skip
        theirs = []
        for number, name in enumerate(("console", *PORTS)):
            ours, other = socket.socketpair()
            theirs.append(other)
            ours.setblocking(False)
            self.sockets[name] = ours
            self.selector.register(ours, selectors.EVENT_READ, name)
            command += ["-chardev", f"socket,id={name},fd={other.fileno()}"]
            if name == "console":
                command += ["-serial", "chardev:console"]
            else:
                command += ["-device", f"virtserialport,chardev={name},name={name},nr={number}"]
        try:
            # In a group of its own: an interruption is for whoever waits for the guest, who ends it then.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                pass_fds=[other.fileno() for other in theirs],
            )  # fmt: skip
        except FileNotFoundError as error:
            self._close()
            raise KernelGuestError(f"{error.filename} is not installed: run tools/setup") from None
        finally:
            for other in theirs:
                other.close()

    def run(self):
        self._pump(lambda: self.started is not None or self._over(), self.spawned + STARTS_WITHIN, "the guest did not start")
        if self.started is not None:
            self._pump(self._over, self.started + self.job.limit, "the command did not end")
        if self.broken:
            raise self._failure(f"the guest could not be set up: {self.broken}")
        if self.status is None:
            raise self._failure("the guest ended before the command did")
        ended = time.monotonic()
        # What is under way comes before the mark, and the guest waits for this before it ends.
        self._pump(lambda: MARK.encode() in self.log or not self.sockets, ended + STARTS_WITHIN, "the guest did not end")
        with contextlib.suppress(OSError, KeyError):
            self.sockets["control"].send(b"bye\n")
        self._pump(lambda: not self.sockets, time.monotonic() + STARTS_WITHIN, "the guest did not end")
        lines = list(kernel_log.lines_of(self.log.decode(errors="replace")))
        if MARK in lines:
            lines = lines[: lines.index(MARK)]
        self.stop()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Result(self.status, lines, ended - self.started, self.started - self.spawned, used.ru_utime + used.ru_stime)

    def _over(self):
        return self.status is not None or self.broken is not None or not self.sockets

    def _pump(self, done, deadline, complaint):
        """Passes on what the guest says until DONE()."""
        while not done():
            timeout = deadline - time.monotonic()
            if timeout <= 0:
                raise self._failure(f"{complaint} within its limit", LimitReached)
            for key, _ in self.selector.select(timeout):
                try:
                    data = key.fileobj.recv(1 << 16)
                except (BlockingIOError, InterruptedError):
                    continue
                except ConnectionResetError:
                    data = b""
                if data:
                    self._take(key.data, data)
                else:
                    self.selector.unregister(key.fileobj)
                    self.sockets.pop(key.data).close()

    def _take(self, name, data):
        if name in self.sinks:
            self.sinks[name].write(data)
            self.sinks[name].flush()
        elif name == "console":
            self.console = (self.console + data)[-65536:]
        elif name == "log":
            self.log += data
        else:
            *lines, self.buffers[name] = (self.buffers.get(name, b"") + data).split(b"\n")
            for line in lines:
                self._control(line.decode(errors="replace"))

    def _control(self, line):
        word, _, rest = line.partition(" ")
        if word == "started":
            self.started = time.monotonic()
        elif word == "ended":
            self.status = int(rest)
        elif word == "broken":
            self.broken = rest

    def _failure(self, what, kind=KernelGuestError):
        self.stop()
        console = [line.rstrip() for line in self.console.decode(errors="replace").splitlines() if line.strip()]
        log = list(kernel_log.lines_of(self.log.decode(errors="replace")))
        text = [what]
        # stderr may be held open by nobody: QEMU has ended.
        said = self.process.stderr.read().decode(errors="replace").strip()
        for title, lines in (("QEMU", said.splitlines()), ("the kernel's log", log), ("the console", console)):
            if lines:
                text += [f"the last lines of {title}:", *(f"  {line}" for line in lines[-LAST_LINES:])]
        return kind("\n".join(text))

    def stop(self):
        """Ends QEMU, whatever it is doing. Stopping twice is fine."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._close()

    def _close(self):
        for ours in self.sockets.values():
            ours.close()
        self.sockets = {}
        self.selector.close()


def default_environment():
    """What a command in a guest sees of the caller's environment."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("FAULTLINE") or name.endswith("SAN_OPTIONS")}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": os.environ.get("HOME", "/root"),
            "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "FAULTLINE_KNOWN_KERNEL": "1", **kept}  # fmt: skip
