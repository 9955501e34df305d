"""Lets a release prove itself in a child process, before it is loaded where a crash would cost all pipelines."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import msgspec
import structlog

from gateway.config import Pipeline
from gateway.ota.canary_child import Answer, Task
from gateway.ota.errors import OtaError
from gateway.wire.manifest import Artefact, ModelManifest

log = structlog.get_logger()

SECONDS: Final = 30.0
STARVED_TIMES: Final = 10.0
"""So many times as long a machine may take that has no processor to spare. Then it is tried again another time."""
_LOOK_SECONDS: Final = 0.5
_LEAST_MEMORY: Final = 512 << 20
_TIMES_WEIGHTS: Final = 8


class CanaryError(OtaError):
    """The release does not do on this machine what it promises."""

    code: ClassVar[str] = "golden"


class CanaryCrashedError(CanaryError):
    """It ends the process it runs in."""

    code = "crash"


class CanaryHangsError(CanaryError):
    """It does not come to an end."""

    code = "hangs"


class CanaryStarvedError(OtaError):
    """This machine is too busy, or too full, to tell; the release may be good."""

    code = "busy"


def prove(
    directory: Path,
    manifest: ModelManifest,
    artefact: Artefact,
    weights_fd: int,
    *,
    settings: Pipeline,
    backend: str,
    seconds: float = SECONDS,
) -> Answer:
    """Load an artefact in a child and run its golden inputs there.

    Args:
        directory: holds manifest.json and the golden inputs.
        manifest: of the release.
        artefact: what is to be proved.
        weights_fd: its plaintext.
        settings: of the pipeline that is to use it.
        backend: what is to run it.
        seconds: on the clock, without what the child waits for a processor (proc_pid_schedstat(5)).

    Raises:
        CanaryError: it fails; `code` says how.
        CanaryStarvedError: it hardly got to run, or was ended from outside, as by a machine without memory.
    """
    label = f"model {manifest.name} {manifest.version}, {artefact.file}"
    task = Task(
        directory=str(directory),
        target=artefact.target,
        backend=backend,
        device=settings.device,
        threads=settings.threads,
        min_score=settings.min_score,
        memory_bytes=max(manifest.constraints.memory_bytes, _LEAST_MEMORY, _TIMES_WEIGHTS * artefact.size_bytes),
        cpu_seconds=int(seconds * max(1, settings.threads)) + 1,
    )
    command = [sys.executable, "-I", "-m", "gateway.ota.canary_child", str(weights_fd)]
    try:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(weights_fd,)
        ) as child:
            try:
                out, err = answered(child, msgspec.json.encode(task), seconds, partial(waited, child.pid))
            finally:
                child.kill()
    except subprocess.TimeoutExpired as error:
        raise CanaryHangsError(f"{label}: its golden inputs are not answered within {seconds:g} s") from error
    except TimeoutError as error:
        raise CanaryStarvedError(f"{label}: its golden inputs cannot be tried now: {error}") from error
    except OSError as error:
        raise CanaryStarvedError(f"{label}: no process to try it in: {error.strerror or error}") from error
    if child.returncode != 0:
        raise _ended(label, child.returncode, err)
    try:
        answer = msgspec.json.decode(out, type=Answer)
    except msgspec.DecodeError as error:
        raise CanaryCrashedError(f"{label}: the process that tried it gave no answer") from error
    if answer.problem:
        raise CanaryError(answer.problem)
    if answer.skipped:
        log.info("canary_skipped", model=f"{manifest.name} {manifest.version}", reason=answer.skipped)
    return answer


def answered(
    child: subprocess.Popen[bytes], asked: bytes, seconds: float, waited: Callable[[], float]
) -> tuple[bytes, bytes]:
    """Return what a child has said when it has ended.

    Args:
        child: with three pipes.
        asked: for its standard input.
        seconds: it may take, on the clock, besides what it waited for a processor.
        waited: tells how long it did, in seconds.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
        TimeoutError: that cannot be said, for it has waited most of the time.
    """
    begun = time.monotonic()
    rest: bytes | None = asked
    while True:
        try:
            return child.communicate(rest, timeout=min(seconds, _LOOK_SECONDS))
        except subprocess.TimeoutExpired:
            rest = None  # it goes on with what it was given first
            passed = time.monotonic() - begun
            if passed - waited() >= seconds:
                raise
            if passed >= seconds * STARVED_TIMES:
                raise TimeoutError(f"within {passed:.0f} s it got {passed - waited():.0f} s of a processor") from None


def waited(pid: int) -> float:
    """Return how long a process has waited for a processor, seconds; 0 where the kernel does not count it."""
    longest = 0
    # Its threads wait at the same time: that of the longest wait is what it could not do without.
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            longest = max(longest, int(thread.read_text().split()[1]))
    return longest / 1e9


def _ended(label: str, status: int, stderr: bytes) -> OtaError:
    if status == -signal.SIGKILL:  # no program ends itself so, and a limit tells itself by SIGXCPU or an exception
        return CanaryStarvedError(
            f"{label}: the process that tried it was killed, as the kernel does where memory runs out"
        )
    if status == -signal.SIGXCPU:
        return CanaryHangsError(f"{label}: its golden inputs take too much of the processor")
    if status < 0:
        return CanaryCrashedError(f"{label}: the process that tried it was ended by {signal.Signals(-status).name}")
    last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return CanaryCrashedError(f"{label}: the process that tried it ended with status {status}: {' '.join(last)}")
