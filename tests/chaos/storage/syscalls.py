"""Killing a program at one system call after the other, by strace's fault injection (strace(1), `-e inject`)."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DURABLE: Final = ("fdatasync", "fsync", "unlink", "rename", "ftruncate", "pwrite64")

_CALL: Final = re.compile(r"^(?P<thread>\d+)\s+(?P<name>\w+)\((?P<rest>.*)$")
_RESUMED: Final = re.compile(r"^(?P<thread>\d+)\s+<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$")


def missing() -> str | None:
    """Say why system calls cannot be counted here; None if they can."""
    if shutil.which("strace") is None:
        return "there is no strace (apt-get install strace)"
    tried = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], check=False, capture_output=True)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.decode().strip()[:200]}"


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: what it was called with and what it answered, and the lines of the trace where it did so."""

    thread: int
    name: str
    arguments: str
    answer: str
    began: int
    ended: int


def traced(command: Sequence[str], trace: Path, names: Sequence[str], kill_at: tuple[str, int] | None) -> list[str]:
    """Return the command under strace; `kill_at` names a call and which of them, counted in each thread, kills."""
    inject = ["-e", f"inject={kill_at[0]}:signal=SIGKILL:when={kill_at[1]}"] if kill_at else []
    return ["strace", "-f", "-qq", *recorded(trace, names), *inject, "--", *command]


def recorded(trace: Path, names: Sequence[str]) -> list[str]:
    """Return the options of strace that write down these calls, as `calls` reads them."""
    return ["-y", "-s", "400", "-o", str(trace), "-e", f"trace={','.join(names)}"]


def counted(trace: Path) -> Counter[str]:
    """Return how often the thread that calls most often has made each call of a trace."""
    each = Counter((call.thread, call.name) for call in calls(trace))
    most: Counter[str] = Counter()
    for (_, name), count in each.items():
        most[name] = max(most[name], count)
    return most


def calls(trace: Path) -> Iterator[Call]:
    """Read a trace in the order in which the calls ended."""
    begun: dict[tuple[int, str], tuple[str, int]] = {}
    for at, line in enumerate(trace.read_text(errors="replace").splitlines()):
        if (found := _RESUMED.match(line)) is not None:
            arguments, began = begun.pop((int(found["thread"]), found["name"]), ("", at))
        elif (found := _CALL.match(line)) is not None:
            arguments, began = found["rest"], at
            if line.endswith("<unfinished ...>"):
                begun[int(found["thread"]), found["name"]] = arguments, at
                continue
        else:
            continue
        _, _, answer = found["rest"].rpartition(" = ")
        yield Call(int(found["thread"]), found["name"], arguments, answer, began, at)
