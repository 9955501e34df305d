"""Keeps this process's memory out of core dumps, and from being read by other processes of its user."""

import ctypes
import os
import resource
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger()

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Hardening:
    """What protects this process's memory now."""

    core_dumps_off: bool
    not_dumpable: bool


def harden_process() -> Hardening:
    """Switch core dumps off for this process and its children, and take it out of reach of ptrace.

    Both are needed: a limit of zero does not stop a core that the kernel pipes into a program, and the dumpable flag
    is reset when a child executes something else (core(5), prctl(2)). Afterwards /proc/PID belongs to root;
    this process still reads its own.
    """
    # The hard limit stays as it is: whoever may raise the limit again in here can read the memory anyway.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("process_still_dumpable", error=os.strerror(ctypes.get_errno()))
    return hardening()


def hardening() -> Hardening:
    """Tell what protects this process's memory."""
    return Hardening(
        core_dumps_off=resource.getrlimit(resource.RLIMIT_CORE)[0] == 0,
        not_dumpable=_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0,
    )
