#!/usr/bin/python3
"""Runs a command under a seccomp filter, as containers and services do.

    seccomp_filter.py ANSWER SYSCALL[,SYSCALL...] COMMAND [ARGUMENT...]

ANSWER is the name of an errno (EPERM, ENOSYS), kill-process, kill-thread or hang; SYSCALL a name from the table below.
"""
import ctypes
import errno
import os
import platform
import struct
import sys

SYSCALLS = {
    "x86_64": {"userfaultfd": 323, "io_uring_setup": 425, "bpf": 321, "perf_event_open": 298, "pidfd_open": 434,
               "inotify_init1": 294, "epoll_pwait2": 441},
    "aarch64": {"userfaultfd": 282, "io_uring_setup": 425, "bpf": 280, "perf_event_open": 241, "pidfd_open": 434,
                "inotify_init1": 26, "epoll_pwait2": 441},
}[platform.machine()]

BPF_LD_W_ABS, BPF_JMP_JEQ_K, BPF_RET_K = 0x20, 0x15, 0x06
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD = 0x80000000, 0x00000000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
PR_SET_NO_NEW_PRIVS = 38


def answer_value(answer):
    if answer == "kill-process":
        return SECCOMP_RET_KILL_PROCESS
    if answer == "kill-thread":
        return SECCOMP_RET_KILL_THREAD
    if answer == "hang":
        return SECCOMP_RET_USER_NOTIF
    return SECCOMP_RET_ERRNO | getattr(errno, answer)


def install(answer, names):
    numbers = [SYSCALLS[name] for name in names]
    rows = [(BPF_LD_W_ABS, 0, 0, 0)]
    for i, number in enumerate(numbers):
        rows.append((BPF_JMP_JEQ_K, len(numbers) - i, 0, number))
    rows += [(BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW), (BPF_RET_K, 0, 0, answer_value(answer))]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rows), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    # Who listens is asked for the answer: the command inherits that, and never gives one.
    listen = SECCOMP_FILTER_FLAG_NEW_LISTENER if answer == "hang" else 0
    listener = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or \
        libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, listen, program)
    if listener < 0:
        sys.exit(f"no seccomp filter can be installed: {os.strerror(ctypes.get_errno())}")
    if listen:
        os.set_inheritable(listener, True)


if __name__ == "__main__":
    install(sys.argv[1], sys.argv[2].split(","))
    os.execvp(sys.argv[3], sys.argv[3:])
