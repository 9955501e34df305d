"""How long a release may take to prove itself, on a machine that has other things to do, or no room for more."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Pipeline
from gateway.ota.canary import CanaryCrashedError, CanaryStarvedError, answered, prove, waited
from gateway.ota.canary_child import Answer
from gateway.wire.manifest import MANIFEST_FILE, read_manifest
from tests.gateway.ota.releases import release, scorer
from tests.simulators.bad_models import endless, fatal
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


Prepare = Callable[..., Callable[[], Answer]]


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Prepare]:
    """Write a release of these weights; returns what tries it."""
    opened: list[int] = []

    def prepare(content: bytes, *, seconds: float = 30.0, golden: tuple[float, float] | None = (1.0, 1.0)) -> Any:
        folder = release(tmp_path, "1.0.0", content, golden=golden)
        manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
        opened.append(os.open(folder / manifest.artefacts[0].file, os.O_RDONLY))
        return partial(
            prove,
            folder,
            manifest,
            manifest.artefacts[0],
            opened[-1],
            settings=Pipeline(source="sensor", model="probe"),
            backend="litert-cpu",
            seconds=seconds,
        )

    yield prepare
    for fd in opened:
        os.close(fd)


def test_a_machine_that_has_no_process_to_spare_says_nothing_of_the_release(prepared: Prepare) -> None:
    trial = prepared(scorer(1.0))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(CanaryStarvedError, match="no process to try it in"):
            trial()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert trial().problem == "", "the control: where there is one, it is good"


def killing(stopped: threading.Event, thread: int) -> None:
    """End each process that a thread of ours has started, as the kernel does where memory runs out."""
    while not stopped.wait(0.05):
        for pid in Path(f"/proc/self/task/{thread}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def test_a_child_that_is_killed_for_the_memory_of_the_machine_says_nothing_of_the_release(prepared: Prepare) -> None:
    stopped = threading.Event()
    killer = threading.Thread(target=killing, args=(stopped, threading.get_native_id()))
    killer.start()
    try:
        with pytest.raises(CanaryStarvedError, match="was killed"):
            prepared(endless(4), golden=None)()
    finally:
        stopped.set()
        killer.join()


def test_control_one_that_ends_its_process_is_to_blame(prepared: Prepare) -> None:
    with pytest.raises(CanaryCrashedError, match="SIGSEGV"):
        prepared(fatal(4), golden=None)()
