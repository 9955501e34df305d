"""Files from elsewhere: fetched by this machine's package managers, used only if they are the right ones.

No host is named here: apt, npm and pip ask wherever they are configured to.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CHILD_TIMEOUT_SECONDS: Final = 900.0
_REASON: Final = re.compile(r"failed|unable|could not|refused|not found|no space", re.IGNORECASE)

Say = Callable[[str], None]


class FetchError(Exception):
    """An asset cannot be had; the message says why and what to do."""


@contextmanager
def working_directory(directory: Path) -> Iterator[Path]:
    """Make a directory on the same file system that is gone afterwards, whatever happens."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as name:
        yield Path(name)


def run_tool(command: Sequence[str], cwd: Path, remedy: str) -> str:
    """Run a tool to its end; return its output.

    Raises:
        FetchError: it is missing, failed, or took more than 15 minutes. The message tells why and ends with the remedy.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHILD_TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as error:
        raise FetchError(f"{name} cannot be run: {error.strerror or error}. {remedy}") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{name} did not end within {CHILD_TIMEOUT_SECONDS:.0f} s. {remedy}") from error
    if done.returncode:
        raise FetchError(f"`{' '.join(command[:4])} …` failed: {_last_words(done.stderr or done.stdout)}. {remedy}")
    return done.stdout


def _last_words(output: str) -> str:
    """Choose what tells a person why a tool failed; npm buries it in a stack trace, apt and pip put it last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if _REASON.search(line)]
    return " / ".join(reasons[:2] or lines[-2:])[:400] or "no output"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, "" if it is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def require_digest(path: Path, sha256: str, what: str) -> None:
    """Refuse a file that is not the expected one.

    Raises:
        FetchError: another content, or no such file.
    """
    found = digest_of(path)
    if found != sha256:
        raise FetchError(
            f"{what}: refused, it is not the expected file (sha256 {found[:16] or 'none'}…, expected {sha256[:16]}…, "
            f"{path.stat().st_size if found else 0:,} bytes). The download is damaged or the package has changed: try "
            "again; if it stays so, ask whoever runs the mirror this machine uses"
        )


def put_in_place(path: Path, target: Path) -> None:
    """Move a finished file or directory to where it belongs, in one step; an older directory goes first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        # A directory cannot be replaced in one step: what is half way is without its name, so nobody loads it.
        target.rename(path.parent / "replaced")
    path.replace(target)


def write_json(path: Path, document: object) -> None:
    """Write a document for people and programs."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def is_root() -> bool:
    """Tell whether this process may do everything."""
    return os.geteuid() == 0
