"""How the command line writes into a store that a running bridge has: it asks the bridge.

A SQLite file has one writing process. That process listens on a Unix socket beside the file; whoever may write in
that directory may ask. One line of JSON is a question, one line the answer.
"""

import asyncio
import os
import socket
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from cloud_bridge.errors import BridgeError, ControlError
from cloud_bridge.letters import Replayed, discard, replay
from cloud_bridge.store.base import Store
from cloud_bridge.transfer import MAX_LINE_BYTES, read_lines

log = structlog.get_logger()

SOCKET_NAME: Final = "bridge.sock"
_MAX_QUESTION_BYTES: Final = 2 * MAX_LINE_BYTES
_ANSWER_SECONDS: Final = 120.0


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the command line asks. `lines` is NDJSON in base64."""

    ask: Literal["import", "replay", "discard", "forget"]
    letter_id: int = 0
    lines: str = ""
    first_line: int = 1
    gateway: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it; `error` when nothing did."""

    error: str | None = None
    inserted: int = 0
    duplicates: int = 0
    bad: list[str] = []
    settled: bool = False
    detail: str = ""


def answer(store: Store, root: str, question: Question, wall_ns: Callable[[], int] = time.time_ns) -> Answer:
    """Do what is asked. Used by the running bridge, and by the command line itself when none runs.

    Raises:
        BridgeError: the store failed; nothing was changed.
    """
    match question.ask:
        case "import":
            lines = b64decode(question.lines, validate=True).split(b"\n")
            chunk = read_lines(lines, question.gateway, first_line=question.first_line)
            outcome = store.ingest(chunk.intake(wall_ns()))
            return Answer(inserted=outcome.inserted, duplicates=outcome.duplicates, bad=list(chunk.bad))
        case "replay":
            return _replayed(replay(store, question.letter_id, root=root, received_at_ns=wall_ns()))
        case "discard":
            return _replayed(discard(store, question.letter_id))
        case "forget":
            return Answer(settled=store.forget(question.gateway or ""))


def _replayed(result: Replayed) -> Answer:
    return Answer(settled=result.settled, detail=result.detail)


def import_question(lines: list[bytes], first_line: int, gateway: str | None) -> Question:
    """Make the question that brings lines of a file in."""
    text = b64encode(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)).decode("ascii")
    return Question(ask="import", lines=text, first_line=first_line, gateway=gateway)


class ControlServer:
    """The bridge's end of the socket."""

    def __init__(self, directory: Path, store: Store, root: str) -> None:
        self._directory = directory
        self._store = store
        self._root = root
        self._stop = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()

    async def run(self) -> None:
        """Listen until stopped."""
        with _short(self._directory) as path:
            path.unlink(missing_ok=True)  # the lock of the store says that nobody else listens here
            server = await asyncio.start_unix_server(self._serve, path, limit=_MAX_QUESTION_BYTES)
            try:
                path.chmod(0o660)
                await self._stop.wait()
            finally:
                server.close()
                for writer in self._open:
                    writer.close()
                path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:  # ValueError: a line beyond the limit
            log.info("control_connection_ended", error=str(error))
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            question = msgspec.json.decode(line, type=Question)
            return await asyncio.to_thread(answer, self._store, self._root, question)
        except (BridgeError, msgspec.DecodeError, ValueError, OverflowError) as error:
            return Answer(error=str(error))


class RunningBridge:
    """The command line's end of the socket."""

    def __init__(self, directory: Path) -> None:
        """Connect.

        Raises:
            ControlError: nobody listens.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_ANSWER_SECONDS)
        try:
            with _short(directory) as path:
                self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ControlError(f"the bridge that has the store does not answer at {directory / SOCKET_NAME}") from error
        self._answers = self._socket.makefile("rb")

    def ask(self, question: Question) -> Answer:
        """Ask and wait.

        Raises:
            ControlError: the bridge could not do it, or went away.
        """
        try:
            self._socket.sendall(msgspec.json.encode(question) + b"\n")
            line = self._answers.readline()
            found = msgspec.json.decode(line, type=Answer)
        except (OSError, msgspec.DecodeError) as error:
            raise ControlError(f"the bridge did not answer: {error}") from error
        if found.error is not None:
            raise ControlError(found.error)
        return found

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._socket.close()


@contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """Give a path to the socket that fits in sun_path (108 bytes), however deep the directory is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}") / SOCKET_NAME
    finally:
        os.close(descriptor)
