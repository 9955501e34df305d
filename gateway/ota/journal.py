"""What outlives a power cut of updates over the air: one small document, replaced whole before each step.

    <state>/ota/journal.json   what runs, what is on trial, what is the way back, what is wanted, blocked, pinned
    <state>/ota/fence          the highest fencing token that was accepted, once more: it must not be forgotten with it

Each step of an update is written down before it is taken. Whoever is killed between the two finds at the next start a
document that names a release which lies there whole: the old one, or the new one.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from gateway.errors import GatewayError
from gateway.ota.errors import OtaError
from gateway.vault.errors import VaultError
from gateway.vault.files import write_durably
from gateway.wire.messages import UpdateState

log = structlog.get_logger()

DIRECTORY: Final = "ota"
FILE: Final = "journal.json"
FENCE: Final = "fence"
MAX_HISTORY: Final = 100
_MAX_BYTES: Final = 4 << 20

Share = Annotated[float, msgspec.Meta(ge=0)]


class JournalError(GatewayError):
    """The journal of updates cannot be written; nothing is swapped until it can be."""


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A release by name and version; versions are never changed, so that says which bytes."""

    name: str
    version: str

    @property
    def label(self) -> str:
        """As in the configuration, `name@version`."""
        return f"{self.name}@{self.version}"


def installed_from(label: str) -> Installed:
    """Read `name@version`.

    Raises:
        OtaError: it is none.
    """
    name, _, version = label.partition("@")
    if not name or not version:
        raise OtaError(f"{label!r} names no release: write NAME@VERSION")
    return Installed(name=name, version=version)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What the release before did lately on this very device; the one on trial is held against it."""

    scores: tuple[float, ...] = ()  # best score of each sample, 0 without a finding
    labels: dict[str, int] = {}  # how often each label was the best; "" for none
    latency_p95_ms: float | None = None
    error_share: Share = 0.0  # of samples without an answer


class OnTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A release that serves, and has not proved itself yet."""

    since_ns: int  # of the first swap, UTC
    running: bool = True  # a run of the pipeline is under way, or ended without saying so
    crashes: int = 0
    reference: Reference = Reference()


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """A release that this device has taken back or refused, and does not try again by itself."""

    model: Installed
    code: str
    reason: str
    at: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the last twin gives to a pipeline and it does not run yet."""

    model: Installed
    token: int
    attempt: int = 0


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline. `active` None: what the configuration names."""

    active: Installed | None = None
    previous: Installed | None = None  # the way back
    trial: OnTrial | None = None
    wanted: Wanted | None = None
    pinned: Installed | None = None
    blocked: tuple[Blocked, ...] = ()
    token: int = 0  # of the twin that gave `active`
    told: UpdateState | None = None  # the last word about an update; the server must hear it, however often

    def is_blocked(self, model: Installed) -> Blocked | None:
        """Return why a release is not tried, None if it may be."""
        return next((each for each in self.blocked if each.model == model), None)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history."""

    at: str
    pipeline: str
    what: str  # accepted, swapped, proven, reverted, refused, pinned, unpinned, crashed
    model: str = ""
    code: str = ""
    detail: str = ""


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document."""

    format: int = 1
    fencing_token: int = 0
    twin_version: int = 0
    features: dict[str, bool] = {}
    pipelines: dict[str, Slot] = {}
    installed: tuple[Installed, ...] = ()  # releases in the vault's store that came over the air
    history: tuple[Event, ...] = ()  # the oldest first

    def slot(self, pipeline: str) -> Slot:
        """Return the slot of a pipeline, a fresh one if nothing was written about it."""
        return self.pipelines.get(pipeline, Slot())

    def with_slot(self, pipeline: str, slot: Slot, *events: Event) -> "Book":
        """Return the document with another slot and a longer history."""
        history = (*self.history, *events)[-MAX_HISTORY:]
        return msgspec.structs.replace(self, pipelines=self.pipelines | {pipeline: slot}, history=history)


class Journal:
    """The document on disk and in memory. Every method may be called from any thread; `change` waits for the disk."""

    def __init__(self, state_directory: Path) -> None:
        """Read what is there; a document that cannot be read is kept beside, and `damage` says so.

        Raises:
            JournalError: the directory cannot be made.
        """
        self.directory = state_directory / DIRECTORY
        self.damage = ""
        self._file = self.directory / FILE
        self._fence = self.directory / FENCE
        self._lock = threading.RLock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for part in self.directory.glob(".*.part"):  # of a write that was killed
                if part.is_file():
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise JournalError(f"{self.directory} cannot be made: {error.strerror or error}") from error
        self._book = self._read()

    @property
    def book(self) -> Book:
        """The document as it was written last."""
        return self._book

    def change(self, step: Callable[[Book], Book]) -> Book:
        """Apply a step and make the result durable; when this returns it survives a power cut.

        Raises:
            JournalError: the disk refuses; on disk and in memory is what was there before.
        """
        with self._lock:
            book = step(self._book)
            if book == self._book:
                return book
            try:
                if book.fencing_token > self._book.fencing_token:
                    # First: with the journal behind it nothing is lost, with the fence behind it something could be.
                    write_durably(self._fence, b"%d\n" % book.fencing_token)
                write_durably(self._file, msgspec.json.encode(book))
            except VaultError as error:
                raise JournalError(f"{error}; no release is swapped until it can be") from error
            self._book = book
            return book

    def _read(self) -> Book:
        book = Book()
        try:
            with self._file.open("rb") as file:
                book = msgspec.json.decode(file.read(_MAX_BYTES), type=Book)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._put_aside(str(error))
        token = max(book.fencing_token, self._read_fence())
        return msgspec.structs.replace(book, fencing_token=token)

    def _put_aside(self, reason: str) -> None:
        aside = self._file.with_name(f"{FILE}.damaged")
        self.damage = f"{self._file} cannot be read ({reason}): kept as {aside.name}, pipelines run what is configured"
        log.error("ota_journal_damaged", file=str(self._file), kept=str(aside), error=reason)
        try:
            self._file.replace(aside)
        except OSError as error:
            log.warning("ota_journal_not_kept", file=str(aside), error=error.strerror or str(error))

    def _read_fence(self) -> int:
        try:
            return int(self._fence.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            self.damage = self.damage or f"{self._fence} cannot be read: {error}"
            log.error("ota_fence_unreadable", file=str(self._fence), error=str(error))
            return 0
