"""A program that is started many times and killed somewhere by strace, without what it costs to import it each time.

One process imports it, and forks for each run. What is forked stops before it begins; when strace has taken hold of it
it goes on, and ends as any program does: at its end, or where it is killed.
"""

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.gateway.vault import kills

_PR_SET_PTRACER: Final = 0x59616D61  # prctl(2): where a process may trace only those it has started
_ANYBODY: Final = ctypes.c_ulong(-1)
_DEADLINE_SECONDS: Final = 60.0


class Warmed:
    """The process that forks; gone when the block ends."""

    def __init__(self, module: str, log: Path) -> None:
        """Import a module, whose `main` reads `sys.argv`. log: what its runs say."""
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=kills.environment(),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:  # it ends with its input
            pass

    def run(self, arguments: Sequence[str], options: Sequence[str]) -> int:
        """Run it once under strace with these options; return its exit code, negative for a signal."""
        assert self._process.stdin is not None
        print(json.dumps([*arguments]), file=self._process.stdin, flush=True)
        runs = int(self._answer())
        tracer: subprocess.Popen[bytes] | None = None
        try:
            _wait(lambda: _field(runs, "State").startswith("T"))
            tracer = subprocess.Popen(["strace", "-f", "-qqq", *options, "-p", str(runs)])
            _wait(lambda: _field(runs, "TracerPid") != "0")
        finally:
            os.kill(runs, signal.SIGCONT)
        code = int(self._answer())
        tracer.wait(_DEADLINE_SECONDS)
        return code

    def killed_at(self, arguments: Sequence[str], call: str, number: int) -> bool:
        """Run it and kill it in front of its n-th call of a kind in any thread; False if it got through."""
        inject = f"inject={call}:signal=SIGKILL:when={number}"
        code = self.run(arguments, ["-o", "/dev/null", "-e", f"trace={call}", "-e", inject])
        assert code in (0, -signal.SIGKILL), self._log.read_text()[-3000:]
        return code != 0

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._log.read_text()[-3000:]
        return line


def _field(process: int, name: str) -> str:
    status = Path(f"/proc/{process}/status").read_text()
    return next(line.partition(":")[2].strip() for line in status.splitlines() if line.startswith(f"{name}:"))


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "strace does not take hold of it"
        time.sleep(0.001)


def main() -> None:
    """Fork for each line of the input, which holds arguments; say its number, and how it has ended."""
    module = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        forked = os.fork()
        if not forked:
            os.dup2(2, 1)
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
            sys.argv[1:] = json.loads(line)
            os.kill(os.getpid(), signal.SIGSTOP)
            module.main()
            return
        print(forked, flush=True)
        _, status = os.waitpid(forked, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
