"""Lets a release prove itself in a child process, before it is loaded where a crash would cost all pipelines."""

import signal
import subprocess
import sys
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
        seconds: on the clock.

    Raises:
        CanaryError: it fails; `code` says how.
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
        done = subprocess.run(
            command,
            input=msgspec.json.encode(task),
            pass_fds=(weights_fd,),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CanaryHangsError(f"{label}: its golden inputs are not answered within {seconds:g} s") from error
    except OSError as error:
        raise CanaryError(f"{label}: no process to try it in: {error.strerror or error}") from error
    if done.returncode != 0:
        raise _ended(label, done.returncode, done.stderr)
    try:
        answer = msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.DecodeError as error:
        raise CanaryCrashedError(f"{label}: the process that tried it gave no answer") from error
    if answer.problem:
        raise CanaryError(answer.problem)
    if answer.skipped:
        log.info("canary_skipped", model=f"{manifest.name} {manifest.version}", reason=answer.skipped)
    return answer


def _ended(label: str, status: int, stderr: bytes) -> CanaryError:
    if status == -signal.SIGXCPU:
        return CanaryHangsError(f"{label}: its golden inputs take too much of the processor")
    if status < 0:
        return CanaryCrashedError(f"{label}: the process that tried it was ended by {signal.Signals(-status).name}")
    last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return CanaryCrashedError(f"{label}: the process that tried it ended with status {status}: {' '.join(last)}")
