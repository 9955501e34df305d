"""Says what the build is doing, how long each step took, and keeps the full log of the tools."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from image.builder.errors import BuildError

_BEAT_SECONDS: Final = 20.0
_TAIL_LINES: Final = 30


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
                process.kill()
                process.wait()
                raise
        if code:
            raise BuildError(
                f"{self._current}: {argv[0]} ended with status {code}\n{self._tail(start)}\nAll: {self.log}"
            )

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
            raise BuildError(f"{self._current}: {argv[0]} ended with status {done.returncode}\n{done.stderr.strip()}")
        return done.stdout

    def _wait(self, process: "subprocess.Popen[bytes]", began: float) -> int:
        while True:
            try:
                return process.wait(_BEAT_SECONDS)
            except subprocess.TimeoutExpired:
                self.say(f"  … {self._current}, {time.monotonic() - began:.0f} s so far")

    def _tail(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])
