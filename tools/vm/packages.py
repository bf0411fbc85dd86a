"""The distribution's packages, fetched and unpacked without being installed. Standard library only."""
import lzma
import os
import pathlib
import subprocess


class PackageError(Exception):
    """Says what could not be had and what to do about it."""


def run(command, **options):
    """Runs to success and returns what was printed, or raises with what the command said."""
    options.setdefault("stdout", subprocess.PIPE)
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)
    except FileNotFoundError:
        raise PackageError(f"{command[0]} is not installed: run tools/setup") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise PackageError(f"`{' '.join(command[:6])}` failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout


def cache_directory(kind):
    """Where what was made of packages is kept; made where it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "faultline" / kind


def refresh_lists_if_empty():
    if b"busybox-static" not in run(["apt-cache", "pkgnames", "busybox-static"]) and os.geteuid() == 0:
        refresh_lists()


def refresh_lists():
    run(["apt-get", "-qq", "update"])


def download(packages, directory):
    # Without a sandbox user of its own: apt's could not write into a directory under root's home, and would say so at length.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages]
    try:
        run(command, cwd=directory)
    except PackageError:
        if os.geteuid() != 0:
            raise
        refresh_lists()  # lists older than the archive name versions that are gone
        run(command, cwd=directory)


def extract(archive, target, *patterns):
    """Unpacks a .deb, or those of its members that match a pattern of tar's."""
    target.mkdir(exist_ok=True)
    tar = run(["dpkg-deb", "--fsys-tarfile", str(archive)])
    run(["tar", "-x", "-p", "--keep-directory-symlink", "-C", str(target), "--wildcards", *patterns], input=tar)


def decompress(path):
    """The bytes of a module, which distributions compress each in its own way."""
    if path.suffix == ".zst":
        return run(["zstd", "-dcq", str(path)])
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def pack_initrd(root, target):
    """Packs the tree as an initramfs."""
    with open(target, "wb") as initrd:
        names = subprocess.run(["find", ".", "-print0"], cwd=root, check=True, stdout=subprocess.PIPE).stdout
        run(["cpio", "--quiet", "-0", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input=names, stdout=initrd)
