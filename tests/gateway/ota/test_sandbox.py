"""The filter of system calls, tried in processes that break it."""

import platform
import signal
import subprocess
import sys

import pytest

known = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="calls of this machine not known")

_TRIES = {
    "opens a file": "open('/etc/hostname')",
    "makes a socket": "import socket; socket.socket()",
    "starts a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "makes a file without a name": "os.memfd_create('x')",
}


def run(body: str, *, confined: bool) -> subprocess.CompletedProcess[str]:
    confine = "filter_calls()" if confined else "pass"
    program = f"import os, socket\nfrom gateway.ota.sandbox import *\n{confine}\n{body}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)


@known
@pytest.mark.parametrize("attempt", _TRIES)
def test_a_confined_process_is_refused(attempt: str) -> None:
    assert "PermissionError" in run(_TRIES[attempt], confined=True).stderr


@pytest.mark.parametrize("attempt", _TRIES)
def test_without_the_filter_it_is_not(attempt: str) -> None:
    done = run(_TRIES[attempt], confined=False)
    assert done.returncode == 0, done.stderr


def test_memory_beyond_the_limit_is_refused() -> None:
    body = "confine(Limits(memory_bytes=64 << 20, file_bytes=0, cpu_seconds=10))\nb = bytearray(256 << 20)"
    assert "MemoryError" in run(body, confined=False).stderr
    assert run("b = bytearray(256 << 20)", confined=False).returncode == 0


def test_whoever_takes_too_much_of_the_processor_ends_otherwise_than_whoever_is_killed_for_memory() -> None:
    spin = "\nwhile True: pass"
    limited = run("confine(Limits(memory_bytes=64 << 20, file_bytes=0, cpu_seconds=1))" + spin, confined=False)
    assert limited.returncode == -signal.SIGXCPU
    at_once = run("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))" + spin, confined=False)
    assert at_once.returncode == -signal.SIGKILL, "the control: with both limits the same the two look alike"
