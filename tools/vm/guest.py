"""Makes a small Debian guest (a kernel, and an initramfs with busybox and Python) from the distribution's own packages."""
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import lzma
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent

KERNEL_PACKAGES = ("linux-image-amd64", "linux-image-generic")  # Debian, Ubuntu: empty packages that depend on today's kernel
USERLAND_PACKAGES = ("busybox-static", "python3-minimal")
# Dependencies that only maintainer scripts need: those scripts never run in the guest.
SKIPPED_PACKAGES = {"debconf", "debconf-2.0", "cdebconf", "dpkg", "perl-base", "gcc-12-base", "gcc-14-base"}
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_balloon")
PRUNED = ("usr/share", "usr/lib/*/gconv", "usr/lib/python3*/test")
DATA_SIZE = 16 << 20  # bytes of known content, beside the packages' files, that a checksum in the guest goes over

FORGOTTEN_AFTER = 7 * 24 * 3600  # seconds


class GuestError(Exception):
    """Says what could not be made and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Guest:
    """Files that QEMU boots, and what `checksum` in the guest must answer."""

    kernel: pathlib.Path
    initrd: pathlib.Path
    checksum: str
    release: str  # of the kernel package


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "faultline" / "demo"


def prepare(progress=lambda message: None, cache=None):
    """The guest from the cache, or made now. Two callers at a time are fine: the second waits for the first."""
    if platform.machine() != "x86_64":
        raise GuestError(f"the guest is made of amd64 packages, and this machine is {platform.machine()}")
    cache = pathlib.Path(cache or cache_directory())
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"guest-{_recipe_key()}"
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "guest.json").exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
                _make(pathlib.Path(work), progress)
                (pathlib.Path(work) / "out").rename(target)
            _forget_old(cache)
        os.utime(target)
    facts = json.loads((target / "guest.json").read_text())
    return Guest(target / "kernel", target / "initrd", facts["checksum"], facts["release"])


def _forget_old(cache):
    """Removes guests of other recipes that nobody has used for long."""
    for directory in cache.glob("guest-*"):
        if time.time() - directory.stat().st_mtime > FORGOTTEN_AFTER:
            shutil.rmtree(directory)


def _recipe_key():
    """Names the guest after everything that it is made by, so that a changed recipe makes a new one."""
    digest = hashlib.sha256()
    for path in (HERE / "guest.py", HERE / "guest-init", HERE / "answer.py", pathlib.Path("/etc/os-release")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _make(work, progress):
    out, packages, root = work / "out", work / "packages", work / "root"
    for directory in (out, packages, root):
        directory.mkdir()

    kernel_package = _resolve_kernel()
    userland = _closure(USERLAND_PACKAGES)
    progress(f"downloading {kernel_package} and {len(userland)} packages for its initramfs")
    _download([kernel_package, *userland], packages)

    progress("unpacking them")
    for archive in sorted(packages.glob("*.deb")):
        if archive.name.startswith(kernel_package + "_"):
            _extract(archive, work / "kernel", "./boot/vmlinuz-*", "*/drivers/virtio/*")
        else:
            _merge_usr(root)
            _extract(archive, root)
    _take_kernel(work / "kernel", out / "kernel", root)

    progress("packing the initramfs")
    _furnish(root)
    checksum = _checksum(root)
    with open(out / "initrd", "wb") as initrd:
        names = subprocess.run(["find", ".", "-print0"], cwd=root, check=True, stdout=subprocess.PIPE).stdout
        _run(["cpio", "--quiet", "-0", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input=names, stdout=initrd)
    (out / "guest.json").write_text(json.dumps({"checksum": checksum, "release": kernel_package}))


def _run(command, **options):
    """Runs to success, or raises with what the command said."""
    options.setdefault("stdout", subprocess.PIPE)
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is not installed: run tools/setup") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GuestError(f"`{' '.join(command[:6])}` failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout


def _depends(packages):
    """First alternatives of the direct (pre-)dependencies."""
    found, alternative = [], False
    for line in _run(["apt-cache", "depends", *packages]).decode().splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind.lstrip("|") in ("Depends", "PreDepends") and not alternative:
            found.append(name.strip("<>"))
        if name:
            alternative = kind.startswith("|")
    return found


def _closure(packages):
    """The packages and all that they need, in the order found."""
    found, fresh = [], list(packages)
    while fresh:
        found += fresh
        fresh = [name for name in dict.fromkeys(_depends(fresh)) if name not in found and name not in SKIPPED_PACKAGES]
    return found


def _resolve_kernel():
    _refresh_lists_if_empty()
    for package in KERNEL_PACKAGES:
        with contextlib.suppress(GuestError):
            for name in _depends([package]):
                if name.startswith("linux-image-"):
                    return name
    raise GuestError(f"apt knows none of {', '.join(KERNEL_PACKAGES)}: run `apt-get update`, and see /etc/apt/sources.list")


def _refresh_lists_if_empty():
    if b"busybox-static" not in _run(["apt-cache", "pkgnames", "busybox-static"]) and os.geteuid() == 0:
        _run(["apt-get", "-qq", "update"])


def _download(packages, directory):
    # Without a sandbox user of its own: apt's could not write into a directory under root's home, and would say so at length.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages]
    try:
        _run(command, cwd=directory)
    except GuestError:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "-qq", "update"])  # lists older than the archive name versions that are gone
        _run(command, cwd=directory)


def _extract(archive, target, *patterns):
    target.mkdir(exist_ok=True)
    tar = _run(["dpkg-deb", "--fsys-tarfile", str(archive)])
    _run(["tar", "-x", "-p", "--keep-directory-symlink", "-C", str(target), "--wildcards", *patterns], input=tar)


def _merge_usr(root):
    """Packages made for either layout land in one place."""
    for directory in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / directory).mkdir(parents=True, exist_ok=True)
        if not (root / directory).is_symlink():
            (root / directory).symlink_to(f"usr/{directory}")


def _take_kernel(unpacked, kernel, root):
    images = list(unpacked.glob("boot/vmlinuz-*"))
    if not images:
        raise GuestError("the kernel's package holds no /boot/vmlinuz-*")
    shutil.copy(images[0], kernel)
    (root / "modules").mkdir()
    for index, name in enumerate(MODULES):  # loaded in this order; what isn't there is built in
        for path in unpacked.rglob(f"{name}.ko*"):
            (root / f"modules/{index}-{name}.ko").write_bytes(_decompress(path))


def _decompress(path):
    if path.suffix == ".zst":
        return _run(["zstd", "-dcq", str(path)])
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _furnish(root):
    for pattern in PRUNED:
        for path in root.glob(pattern):
            shutil.rmtree(path)
    for directory in ("dev", "proc", "sys", "srv", "tmp", "var/cache"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "guest-init", root / "init")
    (root / "init").chmod(0o755)
    shutil.copy(HERE / "answer.py", root / "srv/answer.py")
    (root / "srv/data").write_bytes(hashlib.shake_128(b"faultline").digest(DATA_SIZE))


def _checksum(root):
    """What guest-init's `checksum` computes, over the same files."""
    listing = []
    for top in ("usr", "srv"):
        for path in (root / top).rglob("*"):
            if path.is_file() and not path.is_symlink():
                listing.append((f"/{path.relative_to(root)}", hashlib.sha256(path.read_bytes()).hexdigest()))
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(listing))
    return hashlib.sha256(text.encode()).hexdigest()
