"""Makes a template from a real Debian guest and forks it in four ways: by plain mmap, by demand faults, recorded, and prefetched."""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import build  # noqa: E402
import report  # noqa: E402
from forks import CheckFailed, Runner  # noqa: E402
from interruptions import Interrupted, Interruptions  # noqa: E402
from progress import Progress  # noqa: E402
from vm import guest, qemu  # noqa: E402
from vm.server import Server, ServerError  # noqa: E402

DISK_NEEDED = 1 << 30  # bytes: the memory image, and room for whoever else writes there


def main():
    arguments = parse_arguments()
    progress = Progress()
    try:
        demonstrate(arguments, progress, Interruptions())
        return 0
    except Interrupted as interruption:
        progress.finish()
        print("tools/demo: interrupted; everything that it started has been ended and removed", file=sys.stderr)
        return 128 + interruption.number
    except (CheckFailed, ServerError, qemu.VmError, guest.GuestError, build.BuildError, OSError) as error:
        progress.finish()
        print(f"tools/demo: {error}", file=sys.stderr)
        return 1


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Boots a Debian guest under QEMU, snapshots it, and forks it by plain mmap, by demand faults through the "
        "page server, recorded, and prefetched. Takes about two minutes, downloads about 80 MB the first time, needs root.",
        epilog="The guest is kept in ~/.cache/faultline. FAULTLINE and FAULTLINE_PRELOAD in the environment name a built server "
        "and preload library to use instead of building them.",
    )
    parser.add_argument("--forks", type=positive, default=4, metavar="N", help="forks of each kind (default 4)")
    parser.add_argument("--keep", action="store_true", help="keep the snapshot, the hot list and all logs, and say where")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures to FILE as well")
    return parser.parse_args()


def positive(text):
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 64")
    return int(text)


def demonstrate(arguments, progress, interruptions):
    started, load = time.monotonic(), os.getloadavg()[0]
    check_privileges()
    binary, preload = build.programs(progress)
    progress.step("making the guest of Debian packages")
    image = guest.prepare(progress.detail)
    progress.finish(f"{image.release}, busybox, Python")

    with contextlib.ExitStack() as stack:
        with interruptions.held():
            directory = make_directory(stack, arguments.keep)
            server = stack.enter_context(Server(binary, directory))
            stack.enter_context(explaining(server))
        template = make_template(image, directory, progress, interruptions)
        server.run("template", "add", "base", "--memory", template.memory)
        runner = Runner(template, server, preload, directory, interruptions)
        run_forks(runner, arguments.forks, progress)

        progress.step("checking the template's memory image")
        if not template.intact():
            raise CheckFailed(f"the template's memory image {template.memory} has changed")
        if status := server.stop():
            raise CheckFailed(f"the server ended with status {status}: {server.said()}")
        progress.finish("unchanged")

    rows = report.rows(runner.runs)
    seconds = time.monotonic() - started
    print(f"\n{report.table(rows)}\n{report.LEGEND}\n\n{report.conclusion(rows)}")
    print(f"All {len(runner.runs)} forks computed the right answer, and the checksum of their files in memory was right. "
          f"{seconds:.0f} s.")  # fmt: skip
    if load > os.cpu_count():
        print(f"The machine was busy when this began (load {load:.1f} on {os.cpu_count()} CPUs): the times say little.")
    if arguments.json:
        figures = {"kernel": image.release, "template_intact": True, "seconds": seconds, "rows": rows, "forks": runner.runs}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.keep:
        print(f"The snapshot, the hot list and the logs are in {directory}.")


def check_privileges():
    if os.geteuid() != 0 and not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        raise CheckFailed("userfaultfd for a VM's memory needs root (or access to /dev/userfaultfd): run this as root")


def make_directory(stack, keep):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="faultline-demo-"))
    if not keep:
        stack.callback(shutil.rmtree, directory)
    free = shutil.disk_usage(directory).free
    if free < DISK_NEEDED:
        raise CheckFailed(f"{directory.parent} has only {free >> 20} MiB free, and {DISK_NEEDED >> 20} are needed: set TMPDIR")
    return directory


@contextlib.contextmanager
def explaining(server):
    """Shows the end of the server's log where something fails: the log itself goes away with the rest."""
    try:
        yield
    except Exception:
        print("\nThe server's log ends so:", *server.said().splitlines()[-10:], sep="\n    ", file=sys.stderr)
        raise


def make_template(image, directory, progress, interruptions):
    progress.step("booting the guest under QEMU")
    with contextlib.ExitStack() as stack:
        with interruptions.held():
            vm = stack.enter_context(qemu.boot(image, directory))
        vm.wait_booted()
        progress.finish("ready")
        progress.step("taking its snapshot")
        template = qemu.snapshot(vm, image, directory)
    used = template.memory.stat().st_blocks * 512
    progress.finish(f"{qemu.MEMORY_SIZE >> 20} MiB of memory, {used >> 20} in use")
    return template


def run_forks(runner, count, progress):
    """The ways take turns, so that whatever else the machine does hits them all alike."""
    ways = list(report.WAYS)
    for turn in range(count):
        progress.step(f"forks, one at a time, round {turn + 1} of {count}")
        first = turn % len(ways)
        for way in ways[first:] + ways[:first]:
            progress.detail(report.WAYS[way].strip())
            runner.run(way, keep_list=way == "record" and turn == 0)
        progress.finish("all right")

    at_once = max(2, count)
    for way in ("plain", "demand", "prefetch"):
        progress.step(f"forks, {at_once} at once, {report.WAYS[way].strip()}")
        runner.run_at_once(way, at_once)
        progress.finish("all right")


if __name__ == "__main__":
    sys.exit(main())
