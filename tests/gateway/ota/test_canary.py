"""How long a release may take to prove itself, on a machine that has other things to do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.ota.canary import answered, waited
from tests.simulators.waiting import wait_for


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


SLOW = "import sys, time; asked = sys.stdin.read(); time.sleep(1.5); print(asked * 100_000)"


def test_a_child_that_waits_for_a_processor_gets_that_time_on_top() -> None:
    with child(SLOW) as process:
        out, err = answered(process, b"yes", 1.0, lambda: 1.0)
    assert (out.strip(), err) == (b"yes" * 100_000, b"")


def test_control_one_that_does_not_wait_is_out_of_time() -> None:
    with child(SLOW) as process, pytest.raises(subprocess.TimeoutExpired):
        answered(process, b"yes", 1.0, lambda: 0.0)


def test_one_that_never_gets_to_run_is_not_judged() -> None:
    with child("import time; time.sleep(60)") as process, pytest.raises(TimeoutError, match="s of a processor"):
        answered(process, b"", 0.1, lambda: 1000.0)


def test_the_kernel_tells_how_long_a_process_has_waited_for_a_processor() -> None:
    first = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{first}}}); print(flush=True)\nwhile True: pass"
    with child(spin) as one, child(spin) as other:
        for each in (one, other):
            assert each.stdout is not None
            each.stdout.readline()
        wait_for(lambda: min(waited(one.pid), waited(other.pid)) > 0.3, seconds=30, what="they wait for each other")
    with child("import sys; sys.stdin.read()") as idle:
        assert waited(idle.pid) < 5.0
    assert waited(2**22 + 1) == 0.0
