"""Loads a release and runs its golden inputs, in a process that may crash.

    python -m gateway.ota.canary_child DESCRIPTOR < task.json

Says on standard output, as JSON, how it went (`Answer`). The weights come as the descriptor of anonymous memory.
"""

import resource
import sys
from pathlib import Path

import msgspec

from gateway.config import Pipeline
from gateway.errors import BackendUnavailableError, GatewayError
from gateway.inference.backend import Backend
from gateway.inference.bundle import Release
from gateway.inference.model import open_model
from gateway.inference.select import default_backends
from gateway.ota.sandbox import limit_memory
from gateway.preprocess.preparation import preparation_for
from gateway.wire.errors import WireError
from gateway.wire.manifest import MANIFEST_FILE, Target, read_manifest


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be proved."""

    directory: str  # of the release: manifest.json and golden inputs
    target: Target
    backend: str
    device: str
    threads: int
    min_score: float | None
    memory_bytes: int  # that it may take beyond what the program itself uses
    cpu_seconds: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How it went; `problem` "" is well, `skipped` says why nothing was tried."""

    problem: str = ""
    skipped: str = ""
    peak_bytes: int = 0


class InheritedWeights:
    """Weights in a descriptor of the parent (`gateway.inference.backend.Weights`)."""

    def __init__(self, fd: int) -> None:
        self.path = f"/proc/self/fd/{fd}"

    def close(self) -> None:
        """Nothing to do: it ends with this process."""


def examine(task: Task, fd: int) -> Answer:
    """Do it."""
    directory = Path(task.directory)
    manifest = read_manifest((directory / MANIFEST_FILE).read_bytes())
    release = Release(manifest, directory)
    artefact = manifest.artefact(task.target)
    backend = _backend(task)
    if artefact is None or backend is None:
        return Answer(problem=f"there is nothing for {task.target} on {task.backend}")
    limit_memory(task.memory_bytes, task.cpu_seconds)
    try:
        model = open_model(
            release,
            artefact,
            backend,
            preparation_for,
            open_weights=lambda *_: InheritedWeights(fd),
            threads=task.threads,
            min_score=task.min_score,
        )
    except BackendUnavailableError as error:  # as an accelerator that the running pipeline holds
        return Answer(skipped=str(error))
    model.close()
    return Answer(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _backend(task: Task) -> Backend | None:
    settings = Pipeline(source="", model="", device=task.device)
    return next((each for each in default_backends(settings) if each.name == task.backend), None)


def main(arguments: list[str]) -> int:
    """Read the task, do it, say how it went."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    try:
        answer = examine(task, int(arguments[0]))
    except (GatewayError, WireError, OSError, ValueError) as error:
        answer = Answer(problem=str(error))
    except MemoryError:
        answer = Answer(problem=f"it takes more than {task.memory_bytes} bytes of memory")
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
