"""Asks a running daemon: a unix socket with one JSON request line, and one JSON reply."""

import asyncio
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from gateway.config import Gateway
from gateway.errors import ControlClosedError, ControlError, GatewayError, RequestRefusedError

log = structlog.get_logger()

Handler = Callable[[], msgspec.Struct | dict[str, Any]]
Command = Callable[[Mapping[str, str]], msgspec.Struct | dict[str, Any]]
"""A handler that takes arguments; it checks them itself and raises a GatewayError."""

SOCKET_NAME: Final = "gateway.sock"
MAX_REQUEST_BYTES: Final = 4096
MAX_REPLY_BYTES: Final = 8 * 1024 * 1024

_MAX_CLIENTS: Final = 16
_READ_SECONDS: Final = 5.0
_SUN_PATH_BYTES: Final = 107  # unix(7): 108 with the final NUL


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends."""

    request: str
    arguments: dict[str, str] = {}


class _Reply(msgspec.Struct, omit_defaults=True):
    """What it gets: a result, or an error in words."""

    result: Any = None
    error: str | None = None


def socket_path(gateway: Gateway) -> Path:
    """Return where the control socket of a gateway is."""
    return (gateway.runtime_directory or gateway.state_directory) / SOCKET_NAME


class ControlServer:
    """Answers requests on a socket that only the gateway's own user (and root) may open."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], commands: Mapping[str, Command] = {}) -> None:
        self.path = path
        self._handlers = handlers
        self._commands = commands
        self._clients = 0

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            ControlError: another gateway is running here, or the socket cannot be made.
        """
        with ExitStack() as stack:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                stack.enter_context(_only_one(self.path))
                listener = stack.enter_context(_bound(self.path))
            except OSError as error:
                raise ControlError(
                    f"the control socket {self.path} cannot be made: {error.strerror or error}"
                ) from error
            server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_REQUEST_BYTES)
            async with server:
                await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > _MAX_CLIENTS:
                reply = _Reply(error="too many clients at once; ask again")
            else:
                reply = await self._reply(reader)
            writer.write(_encoded(reply) + b"\n")
            async with asyncio.timeout(_READ_SECONDS):
                await writer.drain()
        except (OSError, TimeoutError) as error:
            log.debug("control_client_lost", error=str(error))
        finally:
            self._clients -= 1
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> _Reply:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                line = await reader.readline()
            request = msgspec.json.decode(line, type=_Request)
        except TimeoutError:
            return _Reply(error=f"no request within {_READ_SECONDS:g} s")
        except ValueError as error:
            # msgspec's errors are ValueErrors; so is readline's for a line that is too long.
            return _Reply(error=f'bad request: {error}; send one line such as {{"request": "status"}}')
        handler, command = self._handlers.get(request.request), self._commands.get(request.request)
        try:
            if handler is not None:
                return _Reply(result=handler())
            if command is not None:
                return _Reply(result=command(request.arguments))
        except GatewayError as error:
            return _Reply(error=str(error))
        known = ", ".join(sorted([*self._handlers, *self._commands]))
        return _Reply(error=f"unknown request {request.request[:64]!r}; known: {known}")


def _encoded(reply: _Reply) -> bytes:
    data = msgspec.json.encode(reply)
    if len(data) > MAX_REPLY_BYTES:
        return msgspec.json.encode(_Reply(error=f"the reply has {len(data)} bytes, more than {MAX_REPLY_BYTES}"))
    return data


def ask(
    path: Path, request: str, arguments: Mapping[str, str] | None = None, *, timeout_seconds: float = 5.0
) -> dict[str, Any]:
    """Send a request to the daemon behind a socket, and return its answer.

    Raises:
        ControlError: no gateway is running there, or it does not answer in time.
        ControlClosedError: it answers its own user and root alone.
        RequestRefusedError: it does not do that; the reason is in the text.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, _reachable(path) as address:
            client.settimeout(timeout_seconds)
            client.connect(address)
            client.sendall(msgspec.json.encode(_Request(request, dict(arguments or {}))) + b"\n")
            data = _read_line(client)
    except PermissionError as error:
        raise ControlClosedError(f"{path} belongs to another user; ask as root or as the gateway's user") from error
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise ControlError(f"no gateway is running at {path}; start it with `gateway run --config FILE`") from error
    except TimeoutError as error:
        raise ControlError(f"the gateway at {path} did not answer within {timeout_seconds:g} s") from error
    except OSError as error:
        raise ControlError(f"the gateway at {path} cannot be asked: {error.strerror or error}") from error
    try:
        reply = msgspec.json.decode(data, type=_Reply)
    except msgspec.DecodeError as error:
        raise ControlError(f"the gateway at {path} gave no proper answer: {error}") from error
    if reply.error is not None or not isinstance(reply.result, dict):
        raise RequestRefusedError(f"the gateway at {path} refused: {reply.error or 'it gave no result'}")
    return reply.result


def _read_line(client: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        if len(data) > MAX_REPLY_BYTES + 1:
            break
        part = client.recv(65536)
        if not part:
            break
        data += part
    return bytes(data)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock beside a socket, so that a socket found there is stale: its owner is gone."""
    lock = path.with_name(path.name + ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ControlError(f"another gateway is running here: it holds {path}") from error
        yield


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """Make the socket, and remove it in the end."""
    if os.path.lexists(path):  # also true for a dangling link
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlError(f"{path} is in the way and is no socket; remove it, or set gateway.runtime_directory")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        with _reachable(path) as address:
            listener.bind(address)
        # Before listen(): until then nobody can connect, whatever the umask was.
        path.chmod(0o600)
        listener.settimeout(0)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Give a name for a socket that fits into `sockaddr_un`, however deep its directory is."""
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
