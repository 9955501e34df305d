"""What needs the device's own code or a model runtime: done in child processes, with limits, as `python -m gateway`.

A release is somebody's file, and loading one runs native code over it: nothing of that happens in the bridge.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec
import structlog

from cloud_bridge.identity.files import create_file
from cloud_bridge.registry.errors import Problem, RegistryError

log = structlog.get_logger()

_ANSWER_BYTES: Final = 4 << 20
_TOOL_SECONDS: Final = 900.0
_ACCEPTABLE: Final = frozenset({"tolerance"})
"""Codes of what the device's program finds that a person may overrule."""
_KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about one artefact; `skipped` says why it was not run."""

    target: str
    file: str
    skipped: str = ""
    golden: int = 0  # so many golden inputs were answered as they should be
    runtime: str = ""


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    where: str
    message: str
    remedy: str


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What `gateway models verify --json` prints."""

    artefacts: list[Examined] = []
    problems: list[_Found] = []


class Workshop(Protocol):
    """What publishing needs of the device's side."""

    def examine(self, directory: Path) -> tuple[list[Examined], list[Problem]]:
        """Compare the files of a release with its manifest, load it and run its golden inputs."""
        ...

    def seal(self, directory: Path, manifest: Path, key: bytes, out: Path) -> None:
        """Seal each file of a directory for a release, as `out/<name>.sealed`. Raises RegistryError."""
        ...

    def unseal(self, containers: Sequence[Path], key: bytes, out: Path) -> None:
        """Open containers, each as `out/<name of what is in it>`. Raises RegistryError."""
        ...


class ChildWorkshop:
    """Runs the device's program beside this one."""

    def __init__(self, check_seconds: float, check_memory_bytes: int, command: Sequence[str] = ()) -> None:
        """Take the limits of an examination. command: of the gateway's program; default: with this interpreter."""
        self._seconds = check_seconds
        self._memory = check_memory_bytes
        self._command = tuple(command) or (sys.executable, "-m", "gateway")

    def examine(self, directory: Path) -> tuple[list[Examined], list[Problem]]:
        """See Workshop."""
        words = ["models", "verify", str(directory), "--json", "--memory-bytes", str(self._memory)]
        words += ["--cpu-seconds", str(max(1, round(self._seconds)))]
        try:
            done = self._run(words, self._seconds)
        except subprocess.TimeoutExpired:
            return [], [
                Problem(
                    "too-slow",
                    str(directory.name),
                    f"loading it and running its golden inputs took more than {self._seconds:g} s",
                    "make the model or its golden inputs smaller, or raise registry.check_seconds",
                )
            ]
        try:
            answer = msgspec.json.decode(done.stdout, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return [], [_crash(directory, done)]
        problems = [
            Problem(one.code, one.where, one.message, one.remedy, acceptable=one.code in _ACCEPTABLE)
            for one in answer.problems
        ]
        if done.returncode and not problems:
            problems = [_crash(directory, done)]
        return answer.artefacts, problems

    def seal(self, directory: Path, manifest: Path, key: bytes, out: Path) -> None:
        """See Workshop."""
        self._tool(["vault", "encrypt-files", str(directory), "--release", str(manifest)], key, out)

    def unseal(self, containers: Sequence[Path], key: bytes, out: Path) -> None:
        """See Workshop."""
        self._tool(["vault", "decrypt-files", *map(str, containers)], key, out)

    def _tool(self, words: Sequence[str], key: bytes, out: Path) -> None:
        out.mkdir(mode=0o700, exist_ok=True)
        key_file = out.with_name(out.name + ".key")
        key_file.unlink(missing_ok=True)
        try:
            create_file(key_file, key.hex().encode() + b"\n")
            done = self._run([*words, "--key-file", str(key_file), "--out", str(out)], _TOOL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RegistryError(f"gateway {words[0]} {words[1]} did not end within {_TOOL_SECONDS:g} s") from error
        finally:
            key_file.unlink(missing_ok=True)
        if done.returncode:
            raise RegistryError(f"gateway {words[0]} {words[1]}: {_last_words(done)}")

    def _run(self, words: Sequence[str], seconds: float) -> "subprocess.CompletedProcess[bytes]":
        """Run a command; whatever it started ends with it, and what it says is kept up to a limit."""
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        # One thread: the limit is on address space, and each thread of a linear algebra library takes its share.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
            try:
                child.wait(seconds)
            finally:
                _end(child)
            return subprocess.CompletedProcess(words, child.returncode, _start_of(output), _start_of(errors))


def _end(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # its whole group, also when it has ended itself
    child.wait()


def _start_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_ANSWER_BYTES)


def _crash(directory: Path, done: "subprocess.CompletedProcess[bytes]") -> Problem:
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    return Problem(
        "crashed",
        directory.name,
        f"the process that loads it ended with {how}: {_last_words(done)}",
        "try `gateway models verify` on it; if it needs more memory, raise registry.check_memory_bytes",
    )


def _last_words(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "it said nothing"
