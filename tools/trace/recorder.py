"""Records what forks of a Debian guest touch: QEMU with the TCG plugin, from the snapshot's resume until a command has answered."""
import gzip
import pathlib
import shutil
import socket

from vm import qemu

PAGE = 4096
BLOCK = 1 << 20  # bytes looked at in one go
ZEROS = bytes(BLOCK)


class RecordError(Exception):
    """Says what could not be recorded and why."""


def nonzero_bitmap(memory):
    """One bit a page of the memory image, most significant first: 1 where the page has any byte that is not zero."""
    bits = bytearray()
    with open(memory, "rb") as file:
        while block := file.read(BLOCK):
            if block == ZEROS[: len(block)]:
                bits += bytes(len(block) // PAGE // 8)
                continue
            for start in range(0, len(block), PAGE * 8):
                byte = 0
                for page in range(start, start + PAGE * 8, PAGE):
                    byte = byte << 1 | (block[page : page + PAGE] != ZEROS[:PAGE])
                bits.append(byte)
    return bytes(bits)


class Control:
    """Tells the plugin what to do. Listens first; the plugin connects when QEMU starts."""

    def __init__(self, path):
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(qemu.TIMEOUT)
        self.lines = None

    def accept(self, vm):
        try:
            connection, _ = self.listener.accept()
        except TimeoutError:
            raise RecordError(f"QEMU does not load the plugin: {vm.said() or 'it said nothing'}") from None
        self.lines = qemu.Lines(connection, "the trace plugin", vm.said)

    def tell(self, command):
        """Returns how many touches there are."""
        self.lines.write(command)
        answer = self.lines.read()
        if not answer.startswith("ok "):
            raise RecordError(f"the trace plugin answered `{answer}` to `{command}`")
        return int(answer[3:])

    def close(self):
        self.listener.close()
        if self.lines:
            self.lines.sock.close()


def make_template(image, directory, command, warm_ups):
    """A snapshot of a guest in which the command has run before, as it has in a warm service."""
    with qemu.boot(image, directory) as vm:
        vm.wait_booted()
        for _ in range(warm_ups):
            ask(vm, command)
        return qemu.snapshot(vm, image, directory)


def ask(vm, command):
    """Has the guest run a shell command; returns the last line that it printed."""
    status, _, said = vm.ask(f"run {command}").partition(" ")
    if status != "0":
        raise RecordError(f"`{command}` failed in the guest with exit status {status}: {said or 'it said nothing'}")
    return said


def record(template, directory, name, command, plugin, output):
    """Forks the template and writes what the fork touches, until the command is done, to OUTPUT. Returns (touches, answer)."""
    control = Control(pathlib.Path(directory) / f"{name}.control")
    plain = pathlib.Path(directory) / f"{name}.csv"
    try:
        options = ["-plugin", f"{plugin},image={template.memory},control={control.path}"]
        with qemu.fork(template, directory, name, options=options) as vm:
            control.accept(vm)
            vm.prepare_incoming()
            vm.load(template.state)
            control.tell("start")
            vm.qmp.execute("cont")
            answer = ask(vm, command)
            vm.qmp.execute("stop")
            touches = control.tell(f"stop {plain}")
    finally:
        control.close()
    compress(plain, output)
    plain.unlink()
    return touches, answer


def compress(source, target):
    """No name and no time go into the file, so that the same trace gives the same bytes."""
    with open(source, "rb") as plain, open(target, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        shutil.copyfileobj(plain, packed)


def write_bitmap(template, target):
    with open(target, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(nonzero_bitmap(template.memory))
