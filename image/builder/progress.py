"""Says what the build is doing, how long each step took, and keeps the full log of the tools."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from image.builder import advice
from image.builder.errors import BuildError

_BEAT_SECONDS: Final = 20.0
_TAIL_LINES: Final = 30
_GONE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """One finished step."""

    name: str
    seconds: float
    cached: bool = False


@dataclass(slots=True)
class Progress:
    """Prints steps on standard error, so that standard output stays for `--json`."""

    log: Path
    done: list[StepTime] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _current: str = "start"

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        sys.stderr.write(f"[{time.monotonic() - self._began:6.1f} s] {text}\n")
        sys.stderr.flush()

    def cached(self, name: str, detail: str) -> None:
        """Note a step that had nothing to do."""
        self.done.append(StepTime(name, 0.0, cached=True))
        self.say(f"{name}: from the cache ({detail})")

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[None]:
        """Time a step. Its commands may be run with `run`."""
        self.say(f"{name}{': ' + detail if detail else ''} …")
        began, before, self._current = time.monotonic(), self._current, name
        try:
            yield
        finally:
            self._current = before
        seconds = time.monotonic() - began
        self.done.append(StepTime(name, seconds))
        self.say(f"{name}: done in {seconds:.1f} s")

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """Run a command into the log; a sign of life every 20 s.

        Raises:
            BuildError: it failed; the end of its output is in the message.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"\n### {self._current}: {' '.join(map(str, argv))}\n".encode())
            log.flush()
            start = log.tell()
            began = time.monotonic()
            process = subprocess.Popen(
                [str(each) for each in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
            )
            try:
                code = self._wait(process, began)
            except BaseException:
                _end(process)
                raise
        if code:
            raise self._failure(self._program(argv), code, self._tail(start))

    def capture(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
        """Run a command and return its standard output.

        Raises:
            BuildError: it failed.
        """
        done = subprocess.run(
            [str(each) for each in argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=None if env is None else dict(env),
        )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            log.write(f"\n### {self._current}: {' '.join(map(str, argv))}\n{done.stderr}")
        if done.returncode:
            raise self._failure(self._program(argv), done.returncode, done.stderr.strip())
        return done.stdout

    def _wait(self, process: "subprocess.Popen[bytes]", began: float) -> int:
        while True:
            try:
                return process.wait(_BEAT_SECONDS)
            except subprocess.TimeoutExpired:
                self.say(f"  … {self._current}, {time.monotonic() - began:.0f} s so far")

    def _failure(self, program: str, code: int, output: str) -> BuildError:
        remedy = advice.about(output)
        told = f"{self._current}: {program} ended with status {code}\n{output}\nAll: {self.log}"
        return BuildError(f"{told}\n{remedy}" if remedy else told)

    @staticmethod
    def _program(argv: Sequence[str | Path]) -> str:
        """Name what was meant to run, and not what isolates it."""
        words = [str(each) for each in argv]
        if words[0] != "unshare":
            return words[0]
        inside = words.index("--") + 1 if "--" in words else 1
        return next(word for word in words[inside:] if not word.startswith("-") and word != "private")

    def _tail(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command, and wait until what it had started in namespaces of its own is gone: files are removed next."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        inside = [os.pidfd_open(int(pid)) for pid in children]
    except OSError:  # it has just ended, or this kernel does not tell
        inside = []
    process.kill()
    process.wait()
    for handle in inside:
        # The first process of a namespace ends after all others in it (pid_namespaces(7)).
        select.select([handle], [], [], _GONE_SECONDS)
        os.close(handle)
