"""Finds the programs, building them where the source tree has none that are up to date."""
import os
import pathlib
import re
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = SOURCE / "build" / "release"


class BuildError(Exception):
    """Says what could not be built."""


def programs(progress):
    """Paths of the server and of the preload library. FAULTLINE and FAULTLINE_PRELOAD name ones that are built already."""
    if "FAULTLINE" in os.environ and "FAULTLINE_PRELOAD" in os.environ:
        return pathlib.Path(os.environ["FAULTLINE"]), pathlib.Path(os.environ["FAULTLINE_PRELOAD"])
    progress.step("building")
    _run(["cmake", "--preset", "release"], progress)
    _run(["cmake", "--build", "--preset", "release", "--target", "faultline", "faultline-preload"], progress)
    progress.finish(str(BUILD))
    return BUILD / "faultline", BUILD / "libfaultline-preload.so"


def _run(command, progress):
    process = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    said = []
    with process:
        try:
            for line in process.stdout:
                said.append(line)
                if count := re.match(r"\[(\d+/\d+)\]", line):
                    progress.detail(count[1])
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise BuildError("".join([*said[-40:], f"`{' '.join(command)}` failed; its last lines stand above"]))
