"""Takes a process of ours the means to do harm: limits, and a filter of system calls (seccomp(2)).

For children that read what was fetched. They import what they need, get their files as open descriptors, and then call
`confine`: from there on they compute, read and write what they have, and exit.
"""

import ctypes
import os
import platform
import resource
import struct
from typing import Final, NamedTuple

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_PR_SET_DUMPABLE: Final = 4
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_EPERM: Final = 0x00050000 | 1
_KILL: Final = 0x80000000
_LOAD: Final = 0x20  # BPF: ld abs
_EQUAL: Final = 0x15  # jeq
_AT_LEAST: Final = 0x35  # jge
_RETURN: Final = 0x06  # ret
_X32: Final = 0x40000000  # a second set of numbers for the same calls, x86-64 only

_FORBIDDEN: Final = {
    # open, creat, openat, openat2; socket, socketpair, connect; fork, vfork; execve, execveat; ptrace,
    # process_vm_readv and writev; io_uring_setup, bpf, memfd_create, open_by_handle_at, mount, kill, tgkill, tkill
    "x86_64": (
        0xC000003E,
        (2, 85, 257, 437, 41, 53, 42, 57, 58, 59, 322, 101, 310, 311, 425, 321, 319, 304, 165, 62, 234, 200),
    ),
    "aarch64": (0xC00000B7, (56, 437, 198, 199, 203, 221, 281, 117, 270, 271, 425, 280, 279, 265, 40, 129, 131, 130)),
}
"""By machine: what the kernel calls its architecture (audit.h), and the numbers of the calls (asm/unistd.h)."""


class Limits(NamedTuple):  # no dataclass, which would import `inspect` into every child
    """What a child may use."""

    memory_bytes: int  # beyond what it uses when it calls `confine`
    file_bytes: int  # the largest file that it may make
    cpu_seconds: int


def confine(limits: Limits) -> None:
    """Limit this process for good.

    On a machine whose system calls are not known here the limits alone count.

    Raises:
        OSError: the kernel refuses.
    """
    limit_memory(limits.memory_bytes, limits.cpu_seconds)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    filter_calls()


def limit_memory(memory_bytes: int, cpu_seconds: int) -> None:
    """Limit what this process takes beyond what it has now, and its time on the processor; it leaves no core."""
    # A little room for the interpreter itself, which asks for whole arenas.
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes + (32 << 20))
    # With both the same the kernel would send SIGKILL at once, as the OOM killer does: SIGXCPU tells the two apart.
    _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    _limit(resource.RLIMIT_CORE, 0)


def filter_calls() -> bool:
    """Refuse this process everything but computing, reading and writing; False where the machine is not known."""
    known = _FORBIDDEN.get(platform.machine())
    if known is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program(*known)
    buffer = ctypes.create_string_buffer(program)
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(described))
    return True


def _program(architecture: int, forbidden: tuple[int, ...]) -> bytes:
    """Return the filter: struct sock_filter of linux/filter.h, one after the other."""
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    left = len(forbidden)
    lines.append((_AT_LEAST, left + 1, 0, _X32))
    for number in forbidden:
        lines.append((_EQUAL, left, 0, number))
        left -= 1
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _prctl(libc: ctypes.CDLL, option: int, value: int, address: int = 0) -> None:
    arguments = (ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(address), ctypes.c_ulong(0))
    if libc.prctl(*arguments, ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    """Lower both limits, never above what they are; `hard` None: the same for both."""
    highest = resource.getrlimit(which)[1]
    wanted = soft if hard is None else hard
    hard = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
    resource.setrlimit(which, (min(soft, hard), hard))


def _address_space() -> int:
    """Return how much address space this process has, in bytes (proc_pid_statm(5))."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - one read, before everything is forbidden
        return int(file.read().split()[0]) * resource.getpagesize()
