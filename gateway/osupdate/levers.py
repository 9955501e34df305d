"""What only root may do: restart the device, and choose which slot is started next.

The gateway has no such rights and gets none. It leaves a request in its runtime directory, a systemd path unit
(`sluice-os-request.path`) starts `gateway os carry-out` as root, and that knows three verbs and nothing else.
"""

import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import msgspec
import structlog

from gateway.osupdate.errors import LeverError

log = structlog.get_logger()

Verb = Literal["restart", "keep", "return"]
REQUEST: Final = "os-request.json"
ANSWER: Final = "os-answer.json"
ANSWER_SECONDS: Final = 180.0
"""So long a program may take to start on a slow device."""
COMMAND_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.1
_MAX_BYTES: Final = 4096

_M = TypeVar("_M", bound=msgspec.Struct)


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`restart`; `keep`: the running slot is started next; `return`: the other one is."""

    verb: Verb
    number: str  # so that an answer is to this request


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; an empty error is success."""

    number: str
    error: str = ""


class Levers(Protocol):
    """What is needed of them."""

    def pull(self, verb: Verb) -> None:
        """Have something done. Raises LeverError."""
        ...


class RequestedLevers:
    """Asks the path unit."""

    def __init__(
        self,
        directory: Path,
        *,
        number: Callable[[], str],
        answer_seconds: float = ANSWER_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """Take the runtime directory; `number` makes a new one for each request."""
        self._directory = directory
        self._number = number
        self._answer_seconds = answer_seconds
        self._monotonic = monotonic
        self._wait = wait

    def pull(self, verb: Verb) -> None:
        """See `Levers.pull`; a restart is answered before it begins."""
        request = Request(verb=verb, number=self._number())
        file = self._directory / REQUEST
        try:
            part = file.with_name(f".{REQUEST}.part")
            part.write_bytes(msgspec.json.encode(request))
            part.replace(file)
        except OSError as error:
            raise LeverError(f"{file}: {error.strerror or error}") from error
        deadline = self._monotonic() + self._answer_seconds
        while self._monotonic() < deadline:
            answer = _read(self._directory / ANSWER, Answer)
            if answer is not None and answer.number == request.number:
                if answer.error:
                    raise LeverError(answer.error)
                return
            self._wait(_LOOK_SECONDS)
        file.unlink(missing_ok=True)
        raise LeverError(
            f"nobody took the request to {verb} within {self._answer_seconds:g} s; is sluice-os-request.path active? "
            "(systemctl enable --now sluice-os-request.path)"
        )


def carry_out(directory: Path, *, rauc: Sequence[str], restart: Sequence[str]) -> Verb | None:
    """Do what the gateway has asked for, as root; return what it was, None if there is no request.

    The request is taken away first, whatever it is: one that crashes the device is not carried out again at the next
    boot, and one that cannot be read, such as a directory, does not have this started again and again.

    Raises:
        LeverError: it cannot be read, or the command fails; the gateway is told too.
    """
    file = directory / REQUEST
    if not os.path.lexists(file):
        return None
    request = _taken(file)
    if request is None:
        raise LeverError(f"{file} is no request")
    commands: dict[Verb, Sequence[str]] = {
        "restart": restart,
        "keep": [*rauc, "status", "mark-active", "booted"],
        "return": [*rauc, "status", "mark-active", "other"],
    }
    if request.verb == "restart":
        _answer(directory, Answer(number=request.number))
    error = _run(commands[request.verb])
    log.info("os_request_carried_out", verb=request.verb, error=error)
    if request.verb != "restart":
        _answer(directory, Answer(number=request.number, error=error))
    if error:
        raise LeverError(error)
    return request.verb


def _taken(file: Path) -> Request | None:
    """Move the request to where only this user may change it, read it there, and remove it; None: it is none."""
    try:
        own = Path(tempfile.mkdtemp(prefix=".sluice-os-request-", dir=file.parent.parent))  # the same file system
    except OSError as error:
        raise LeverError(f"{file.parent.parent}: {error.strerror or error}") from error
    try:
        return _read(file.rename(own / REQUEST), Request)
    except FileNotFoundError:
        return None  # it was taken back meanwhile
    except OSError as error:
        raise LeverError(f"{file} cannot be taken away: {error.strerror or error}") from error
    finally:
        _run(("rm", "-rf", "--one-file-system", "--", str(own)))  # also of directories a thousand deep; follows no link


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            [*command], stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)}: {error}"
    words = (done.stderr + done.stdout).decode(errors="replace").strip()[-500:]
    return "" if done.returncode == 0 else f"{' '.join(command)}: status {done.returncode}: {words}"


def _answer(directory: Path, answer: Answer) -> None:
    """Leave the answer. The directory is the gateway's: no link of its making is followed."""
    part = directory / f".{ANSWER}.part"
    try:
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as out:  # noqa: PTH123 - by descriptor
            out.write(msgspec.json.encode(answer))
        part.replace(directory / ANSWER)
    except OSError as error:
        raise LeverError(f"{part}: {error.strerror or error}") from error


def _read(file: Path, kind: type[_M]) -> _M | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with open(descriptor, "rb") as source:  # noqa: PTH123 - by descriptor
        try:
            return msgspec.json.decode(source.read(_MAX_BYTES), type=kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
