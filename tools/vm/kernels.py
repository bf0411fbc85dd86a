"""Debian's kernels of other versions than the machine's: the newest package of one, made into something that QEMU boots."""
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import tempfile
import time

from . import packages
from .packages import PackageError

HERE = pathlib.Path(__file__).resolve().parent

# What the guest loads, with all that each of them needs: before it mounts the machine's files, and for KVM.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")
KVM_MODULES = ("kvm", "ccp", "kvm_amd")
BUSYBOX = pathlib.Path("/bin/busybox")
FORGOTTEN_AFTER = 7 * 24 * 3600  # seconds


class NoSuchKernel(PackageError):
    """The distribution's package lists have no kernel of that version."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Files that QEMU boots."""

    image: pathlib.Path
    initrd: pathlib.Path
    package: str  # with its version


def prepare(version, progress=lambda message: None, cache=None):
    """The newest kernel VERSION ("6.12") that apt knows, from the cache or made now. Two callers at a time are fine."""
    if platform.machine() != "x86_64":
        raise PackageError(f"the kernels are amd64 packages, and this machine is {platform.machine()}")
    if not BUSYBOX.exists():
        raise PackageError(f"{BUSYBOX} is missing: run tools/setup")
    package, package_version = find_package(version)
    cache = pathlib.Path(cache or packages.cache_directory("kernels"))
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{package.removeprefix('linux-image-')}_{package_version}_{_recipe_key()}"
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "kernel.json").exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
                _make(package, package_version, pathlib.Path(work), progress)
                (pathlib.Path(work) / "out").rename(target)
            _forget_old(cache)
        os.utime(target)
    facts = json.loads((target / "kernel.json").read_text())
    return Kernel(target / "image", target / "initrd", facts["package"])


def find_package(version):
    """(name, version) of the newest generic kernel image. The cloud images have no 9p, and the real-time ones are other kernels."""
    packages.refresh_lists_if_empty()
    found = _newest(version)
    if not found and os.geteuid() == 0:
        packages.refresh_lists()
        found = _newest(version)
    if not found:
        raise NoSuchKernel(
            f"apt knows no generic kernel {version}: see /etc/apt/sources.list (6.1 and 6.12 are in Debian 12's security archive)"
        )
    return found


def _newest(version):
    pattern = rf"linux-image-{re.escape(version)}[.](\d+)(-(\d+)|[+]deb\d+)*-amd64"
    names = packages.run(["apt-cache", "pkgnames", f"linux-image-{version}."]).decode().split()
    names = sorted((name for name in names if re.fullmatch(pattern, name)), key=_numbers)
    for name in reversed(names):
        policy = packages.run(["apt-cache", "policy", name]).decode()
        if candidate := re.search(r"Candidate: ([^(\s]+)", policy):  # names of kernels that are gone may still be known
            return name, candidate[1]
    return None


def _numbers(name):
    return [int(number) for number in re.findall(r"\d+", name)]


def _forget_old(cache):
    """Removes kernels of other versions and recipes that nobody has used for long."""
    for facts in cache.glob("*/kernel.json"):
        if time.time() - facts.parent.stat().st_mtime > FORGOTTEN_AFTER:
            shutil.rmtree(facts.parent)


def _recipe_key():
    digest = hashlib.sha256()
    for path in (HERE / "kernels.py", HERE / "kernel-init", BUSYBOX):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _make(package, package_version, work, progress):
    out, root, unpacked = work / "out", work / "root", work / "unpacked"
    for directory in (out, root, root / "bin", root / "modules"):
        directory.mkdir()

    progress(f"downloading {package} {package_version}")
    packages.download([f"{package}={package_version}"], work)
    progress("unpacking it")
    # All modules, for depmod to find out what needs what: which parts are modules differs from version to version.
    packages.extract(next(work.glob("*.deb")), unpacked, "./boot/vmlinuz-*", "*/lib/modules/*")
    images = list(unpacked.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise PackageError(f"{package} holds {len(images)} files named /boot/vmlinuz-*, and should hold one")
    shutil.copy(images[0], out / "image")
    base = next(path for path in (unpacked / "usr", unpacked) if (path / "lib/modules").is_dir())
    release = images[0].name.removeprefix("vmlinuz-")
    packages.run(["depmod", "-b", str(base), release])

    tree = base / "lib/modules" / release
    for name, modules in (("base", MODULES), ("kvm", KVM_MODULES)):
        _copy_modules(tree, modules, root / "modules" / name)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    shutil.copy(HERE / "kernel-init", root / "init")
    (root / "init").chmod(0o755)
    packages.pack_initrd(root, out / "initrd")
    (out / "kernel.json").write_text(json.dumps({"package": f"{package} {package_version}"}))


def _copy_modules(tree, wanted, target):
    """Copies the modules and all that they need, numbered in the order in which they can be loaded. What is built in is left out."""
    needs, paths = {}, {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        name = _module_name(path)
        paths[name] = tree / path
        needs[name] = [_module_name(dependency) for dependency in dependencies.split()]
    builtin = {_module_name(line) for line in (tree / "modules.builtin").read_text().split()}

    order = []

    def visit(name):
        if name not in paths:
            if name not in builtin:
                raise PackageError(f"{tree.name} has no module {name}")
        elif name not in order:
            for dependency in needs[name]:
                visit(dependency)
            order.append(name)

    for name in wanted:
        visit(name)
    target.mkdir()
    for index, name in enumerate(order):
        (target / f"{index:02}-{name}.ko").write_bytes(packages.decompress(paths[name]))


def _module_name(path):
    return pathlib.PurePath(path).name.partition(".ko")[0].replace("-", "_")
