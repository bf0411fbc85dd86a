#!/usr/bin/python3
"""A VMM without a VM: one region of memory, registered with userfaultfd and handed to a fork's socket as Firecracker does it.

    fake_vmm.py SOCKET SIZE [--image-offset N] [--user-mode]

Then it obeys one command a line on stdin and answers each with a line: `read OFFSET` (the 8 bytes there, in hex), `drop OFFSET
LENGTH` (MADV_DONTNEED), `quit`. It runs as a process of its own, since a fault stops all of a Python process.
"""
import argparse
import array
import ctypes
import json
import mmap
import os
import platform
import socket
import struct
import subprocess
import sys
from fcntl import ioctl

PAGE = 4096
SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
UFFD_API = 0xAA
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFD_FEATURE_EVENT_REMOVE = 1 << 3
UFFDIO_REGISTER_MODE_MISSING = 1
MADV_NOHUGEPAGE = 15
UFFD_USER_MODE_ONLY = 1


def open_userfaultfd(user_mode):
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | (UFFD_USER_MODE_ONLY if user_mode else 0))
    if fd < 0:
        sys.exit(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    ioctl(fd, UFFDIO_API, struct.pack("QQQ", UFFD_API, UFFD_FEATURE_EVENT_REMOVE, 0))
    return fd


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("size", type=int)
    parser.add_argument("--image-offset", type=int, default=0)
    parser.add_argument("--user-mode", action="store_true", help="no faults of the kernel's; takes no privileges")
    args = parser.parse_args()

    memory = mmap.mmap(-1, args.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(MADV_NOHUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    uffd = open_userfaultfd(args.user_mode)
    ioctl(uffd, UFFDIO_REGISTER, struct.pack("QQQQ", address, args.size, UFFDIO_REGISTER_MODE_MISSING, 0))

    regions = [{"base_host_virt_addr": address, "size": args.size, "offset": args.image_offset, "page_size": PAGE,
                "page_size_kib": PAGE}]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(args.socket)
    connection.sendmsg([json.dumps(regions).encode()],
                       [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [uffd]))])
    print("connected", flush=True)

    for line in sys.stdin:
        word, *numbers = line.split()
        numbers = [int(n, 0) for n in numbers]
        if word == "quit":
            break
        if word == "read":
            print(memory[numbers[0]:numbers[0] + 8].hex(), flush=True)
        elif word == "drop":
            memory.madvise(mmap.MADV_DONTNEED, *numbers)
            print("dropped", flush=True)


class FakeVmm:
    """The same from a test: with FakeVmm(socket, size) as vmm: vmm.read(0)."""

    def __init__(self, socket_path, size, image_offset=0):
        self.process = subprocess.Popen([sys.executable, __file__, socket_path, str(size), "--image-offset",
                                         str(image_offset)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self.process.stdout.readline()
        if answer != "connected\n":
            raise RuntimeError(f"the fake VMM did not connect: {answer!r}")
        self.pid = self.process.pid

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fake VMM ended at '{command}'")
        return answer.strip()

    def read(self, offset):
        return bytes.fromhex(self.ask(f"read {offset}"))

    def drop(self, offset, length):
        self.ask(f"drop {offset} {length}")

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


if __name__ == "__main__":
    main()
