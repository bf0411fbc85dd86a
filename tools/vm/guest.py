"""Makes a small Debian guest (a kernel, and an initramfs with busybox and Python) from the distribution's own packages."""
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import shutil
import tempfile
import time

from . import packages as debian
from .packages import PackageError as GuestError

HERE = pathlib.Path(__file__).resolve().parent

KERNEL_PACKAGES = ("linux-image-amd64", "linux-image-generic")  # Debian, Ubuntu: empty packages that depend on today's kernel
USERLAND_PACKAGES = ("busybox-static", "python3-minimal")
# Dependencies that only maintainer scripts need: those scripts never run in the guest.
SKIPPED_PACKAGES = {"debconf", "debconf-2.0", "cdebconf", "dpkg", "perl-base", "gcc-12-base", "gcc-14-base"}
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_balloon")
PRUNED = ("usr/share", "usr/lib/*/gconv", "usr/lib/python3*/test")
DATA_SIZE = 16 << 20  # bytes of known content, beside the packages' files, that a checksum in the guest goes over

FORGOTTEN_AFTER = 7 * 24 * 3600  # seconds


@dataclasses.dataclass(frozen=True)
class Guest:
    """Files that QEMU boots, and what `checksum` in the guest must answer."""

    kernel: pathlib.Path
    initrd: pathlib.Path
    checksum: str
    release: str  # of the kernel package


def prepare(progress=lambda message: None, cache=None):
    """The guest from the cache, or made now. Two callers at a time are fine: the second waits for the first."""
    if platform.machine() != "x86_64":
        raise GuestError(f"the guest is made of amd64 packages, and this machine is {platform.machine()}")
    cache = pathlib.Path(cache or debian.cache_directory("demo"))
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"guest-{_recipe_key()}"
    if (target / "guest.json").exists() and not os.access(cache, os.W_OK):
        return _guest_in(target)  # a cache that others keep
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "guest.json").exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
                _make(pathlib.Path(work), progress)
                (pathlib.Path(work) / "out").rename(target)
            _forget_old(cache)
        os.utime(target)
    return _guest_in(target)


def _guest_in(target):
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
    for path in (HERE / "guest.py", HERE / "packages.py", HERE / "guest-init", HERE / "answer.py", pathlib.Path("/etc/os-release")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _make(work, progress):
    out, packages, root = work / "out", work / "packages", work / "root"
    for directory in (out, packages, root):
        directory.mkdir()

    kernel_package = _resolve_kernel()
    userland = _closure(USERLAND_PACKAGES)
    progress(f"downloading {kernel_package} and {len(userland)} packages for its initramfs")
    debian.download([kernel_package, *userland], packages)

    progress("unpacking them")
    for archive in sorted(packages.glob("*.deb")):
        if archive.name.startswith(kernel_package + "_"):
            debian.extract(archive, work / "kernel", "./boot/vmlinuz-*", "*/drivers/virtio/*")
        else:
            _merge_usr(root)
            debian.extract(archive, root)
    _take_kernel(work / "kernel", out / "kernel", root)

    progress("packing the initramfs")
    _furnish(root)
    checksum = _checksum(root)
    debian.pack_initrd(root, out / "initrd")
    (out / "guest.json").write_text(json.dumps({"checksum": checksum, "release": kernel_package}))


def _depends(packages):
    """First alternatives of the direct (pre-)dependencies."""
    found, alternative = [], False
    for line in debian.run(["apt-cache", "depends", *packages]).decode().splitlines():
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
    debian.refresh_lists_if_empty()
    for package in KERNEL_PACKAGES:
        with contextlib.suppress(GuestError):
            for name in _depends([package]):
                if name.startswith("linux-image-"):
                    return name
    raise GuestError(f"apt knows none of {', '.join(KERNEL_PACKAGES)}: run `apt-get update`, and see /etc/apt/sources.list")


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
            (root / f"modules/{index}-{name}.ko").write_bytes(debian.decompress(path))


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
