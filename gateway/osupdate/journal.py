"""What must survive a restart, and even more so the restart into another system: which update is under way and how far.

    <state>/os/journal.json   the whole document, replaced whole before each step
    <state>/os/verdicts.json  what is blocked and which twin was the last, once more: it must not be forgotten with it

The data partition is the same for both systems, so each finds what the other has written, the old one after falling
back too. Fields of the document that this program does not know are kept. A value that it does not know, such as a
stage of a newer program, is left out alone: see `gateway.statefiles`. So a newer program may add fields and words, and
none of its own may be needed to know what is blocked.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import structlog

from gateway.osupdate.errors import OsJournalError
from gateway.ota.errors import StorageError
from gateway.ota.trust_store import make_directory, write_durably
from gateway.statefiles import encoded, is_passing, read_patiently, understood, words_of
from gateway.wire.messages import UpdateState

log = structlog.get_logger()

DIRECTORY: Final = "os"
FILE: Final = "journal.json"
VERDICTS: Final = "verdicts.json"
MAX_HISTORY: Final = 100
MAX_BLOCKED: Final = 32
MAX_TAKEN: Final = 32
_MAX_BYTES: Final = 4 * 1024 * 1024

Stage = Literal["wanted", "ready", "installing", "installed", "restarting", "trial"]
Origin = Literal["cloud", "person", "medium"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """An update under way.

    `ready`: the bundle is here, or can be streamed. `installed`: the restart is waited for. `boot_id`: of the boot in
    which the stage was reached; another one means that the device was started again since.
    """

    compatible: str
    version: str
    token: int = 0  # of the twin that wanted it
    origin: Origin = "cloud"
    source: str = ""  # a path, or an address, where it does not come from the repository
    stage: Stage = "wanted"
    boot_id: str = ""
    from_version: str = ""
    from_slot: str = ""
    to_slot: str = ""
    floor: str = ""
    pcr11: dict[str, str] = {}
    since: str = ""
    tries: int = 0
    installs: int = 0  # that failed
    streams: int = 0  # of those, over the network
    restarts: int = 0
    fetched_bytes: int = 0
    full_bytes: int = 0
    health_at: str = ""  # of the report on health that was there before the restart
    cancelled: bool = False  # by a person; it is over when what runs is sure to be started again


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """A version that this device has refused or fallen back from; it is not tried again by itself."""

    compatible: str
    version: str
    code: str
    reason: str
    at: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history."""

    at: str
    what: (
        str  # wanted, fetched, installed, restarting, started, proven, reverted, refused, withdrawn, given-up, offered,
        # other-slot
    )
    version: str = ""
    code: str = ""
    detail: str = ""


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on a medium that is plugged in."""

    version: str
    path: str


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the bridge wants to run here."""

    compatible: str
    version: str
    token: int


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document."""

    format: int = 1  # of the program that wrote it last
    token: int = 0  # of the last twin that was looked at
    wish: Wish | None = None
    job: Job | None = None
    slots: dict[str, str] = {}  # which version was last seen in which slot
    ran: str = ""  # the slot that was seen running last
    left: str = ""  # the one that ran before it, where no update has led from there: what it has may not start any more
    told: UpdateState | None = None  # the last word; the bridge must hear it, however often
    offered: Offered | None = None  # a bundle on a medium that waits for a person
    taken: tuple[str, ...] = ()  # versions that were begun from a medium by themselves; not so a second time
    blocked: tuple[Blocked, ...] = ()
    history: tuple[Event, ...] = ()  # the oldest first

    def is_blocked(self, compatible: str, version: str) -> Blocked | None:
        """Return why a version is not tried, None if it may be."""
        return next((each for each in self.blocked if (each.compatible, each.version) == (compatible, version)), None)

    def noting(self, *events: Event) -> "Book":
        """Return the document with a longer history."""
        return msgspec.structs.replace(self, history=(*self.history, *events)[-MAX_HISTORY:])


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """What a lost journal must not make forgotten: the same twin would have a bad image installed again each time."""

    format: int = 1
    token: int = 0
    blocked: tuple[Blocked, ...] = ()


Step = Callable[[Book], Book]


class Journal:
    """The document on disk and in memory. Every method may be called from any thread; `change` waits for the disk."""

    def __init__(self, state_directory: Path) -> None:
        """Read what is there; a document that cannot be read is kept beside, and `damage` says so.

        Raises:
            OsJournalError: the directory cannot be made, or the document cannot be read now, though that may pass.
        """
        self.directory = state_directory / DIRECTORY
        self.damage = ""
        self._file = self.directory / FILE
        self._verdicts_file = self.directory / VERDICTS
        self._lock = threading.RLock()
        try:
            make_directory(self.directory)
        except StorageError as error:
            raise OsJournalError(str(error)) from error
        self._verdicts = _verdicts_in(self._verdicts_file)
        self._unknown: Mapping[str, msgspec.Raw] = {}
        self._book = self._read()

    @property
    def book(self) -> Book:
        """The document as it was written last."""
        return self._book

    def change(self, step: Step) -> Book:
        """Apply a step and make the result durable; when this returns it survives a power cut.

        Raises:
            OsJournalError: the disk refuses; in memory is what was there before, and on disk, but for verdicts.
        """
        with self._lock:
            book = step(self._book)
            if book == self._book:
                return book
            verdicts = Verdicts(token=book.token, blocked=book.blocked)
            try:
                if verdicts != (self._verdicts or Verdicts()):  # first: a journal that is behind them does no harm
                    write_durably(self._verdicts_file, msgspec.json.encode(verdicts))
                    self._verdicts = verdicts
                write_durably(self._file, encoded(msgspec.structs.replace(book, format=Book().format), self._unknown))
            except StorageError as error:
                raise OsJournalError(f"{error}; the system is not updated until it can be written") from error
            self._book = book
            return book

    def _read(self) -> Book:
        try:
            found = _found(self._file)
        except OsJournalError as error:
            if is_passing(error.__cause__):
                raise
            self._put_aside(error)
            return _from(self._verdicts)
        if found is None:
            if self._verdicts is not None:
                self.damage = f"{self._file} is gone: what was blocked is known, what was under way is not"
                log.error("os_journal_lost", file=str(self._file))
            return _from(self._verdicts)
        if found.left_out:
            log.warning("os_journal_of_another_program", file=str(self._file), not_understood=found.left_out)
        self._unknown = found.unknown
        if not any(place.startswith(("blocked", "token")) for place in found.left_out):
            return found.book
        copy = _from(self._verdicts)
        known = {(each.compatible, each.version) for each in found.book.blocked}
        missing = tuple(each for each in copy.blocked if (each.compatible, each.version) not in known)
        return msgspec.structs.replace(
            found.book, token=max(found.book.token, copy.token), blocked=(*missing, *found.book.blocked)
        )

    def _put_aside(self, error: OsJournalError) -> None:
        aside = self._file.with_name(f"{FILE}.damaged")
        kept = "" if self._verdicts is not None else ", and which versions were blocked is not known any more"
        self.damage = f"{error}: kept as {aside.name}{kept}"
        log.error("os_journal_damaged", file=str(self._file), kept=str(aside), error=str(error))
        try:
            self._file.replace(aside)
        except OSError as failure:
            log.warning("os_journal_not_kept", file=str(aside), error=failure.strerror or str(failure))


def _from(verdicts: Verdicts | None) -> Book:
    """Return a document that knows nothing else. The last twin counts once more, for what it wanted is lost."""
    if verdicts is None:
        return Book()
    return Book(token=max(0, verdicts.token - 1), blocked=verdicts.blocked)


def read_book(state_directory: Path) -> Book:
    """Return the document as it lies on the disk, an empty one where there is none. Nothing is made, moved or written.

    Raises:
        OsJournalError: it is damaged, or belongs to another user.
    """
    found = _found(state_directory / DIRECTORY / FILE)
    return found.book if found is not None else Book()


class _Found(NamedTuple):
    book: Book
    left_out: tuple[str, ...]
    unknown: Mapping[str, msgspec.Raw]


def _found(file: Path) -> _Found | None:
    """Read the document; None if there is none.

    Raises:
        OsJournalError: it cannot be read; its cause says whether that may pass.
    """
    try:
        found = understood(read_patiently(file, _MAX_BYTES), Book)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        words = words_of(file, error) if is_passing(error) else f"{file} cannot be read ({error})"
        raise OsJournalError(words) from error
    book = found.value
    if "job.stage" in found.left_out and book.job is not None and book.job.to_slot:
        # The other system has run, for this one knows no such stage; it did so to try what is installed there. Where
        # nothing was installed yet, the update begins again.
        book = msgspec.structs.replace(book, job=msgspec.structs.replace(book.job, stage="trial"))
    return _Found(book, found.left_out, found.unknown)


def _verdicts_in(file: Path) -> Verdicts | None:
    """Read the copy; None if there is none that can be read.

    Raises:
        OsJournalError: it cannot be read now, though that may pass.
    """
    try:
        return understood(read_patiently(file, _MAX_BYTES), Verdicts).value
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if is_passing(error):
            raise OsJournalError(words_of(file, error)) from error
        log.warning("os_verdicts_unreadable", file=str(file), error=str(error), meaning="written again with the next")
        return None


# ---- steps -----------------------------------------------------------------------------------------------------------


def begin(job: Job, at: str) -> Step:
    """An update is wanted; whatever else was under way is not any more. A person's wish lifts what is blocked."""

    def step(book: Book) -> Book:
        blocked = book.blocked
        if job.origin == "person":
            blocked = tuple(
                each for each in blocked if (each.compatible, each.version) != (job.compatible, job.version)
            )
        taken = book.taken
        if job.origin == "medium":
            taken = (*(each for each in taken if each != job.version), job.version)[-MAX_TAKEN:]
        book = msgspec.structs.replace(book, job=msgspec.structs.replace(job, since=at), blocked=blocked, taken=taken)
        return book.noting(Event(at=at, what="wanted", version=job.version, code=job.origin, detail=job.source))

    return step


def reach(stage: Stage, boot_id: str, at: str, what: str = "", **changes: object) -> Step:
    """The update under way has come to a stage."""

    def step(book: Book) -> Book:
        if book.job is None:
            return book
        job = msgspec.structs.replace(book.job, stage=stage, boot_id=boot_id, **changes)
        book = msgspec.structs.replace(book, job=job)
        return book.noting(Event(at=at, what=what, version=job.version)) if what else book

    return step


def amend(**changes: object) -> Step:
    """Note something of the update under way, which stays where it is."""

    def step(book: Book) -> Book:
        if book.job is None:
            return book
        return msgspec.structs.replace(book, job=msgspec.structs.replace(book.job, **changes))

    return step


def end(what: str, at: str, *, code: str = "", detail: str = "", block: bool = False) -> Step:
    """The update under way is over."""

    def step(book: Book) -> Book:
        job = book.job
        if job is None:
            return book
        blocked = book.blocked
        if block:
            others = [each for each in blocked if (each.compatible, each.version) != (job.compatible, job.version)]
            this = Blocked(compatible=job.compatible, version=job.version, code=code, reason=detail, at=at)
            blocked = (*others, this)[-MAX_BLOCKED:]
        taken = book.taken
        if what == "given-up":  # the medium was pulled out: with it comes another try
            taken = tuple(each for each in taken if each != job.version)
        book = msgspec.structs.replace(book, job=None, blocked=blocked, taken=taken)
        return book.noting(Event(at=at, what=what, version=job.version, code=code, detail=detail))

    return step


def tell(update: UpdateState | None) -> Step:
    """What the bridge is to hear."""
    return lambda book: msgspec.structs.replace(book, told=update)


def wish_for(token: int, wish: Wish | None) -> Step:
    """Take what a desired twin says of the system; one that was taken already changes nothing.

    Whether it is older is looked at before, and not here: a token that is not believed any more would shut this off.
    """

    def step(book: Book) -> Book:
        return book if token == book.token else msgspec.structs.replace(book, token=token, wish=wish)

    return step


def found_in(slot: str, version: str) -> Step:
    """Remember which version a slot has."""

    def step(book: Book) -> Book:
        if not slot or not version or book.slots.get(slot) == version:
            return book
        return msgspec.structs.replace(book, slots=book.slots | {slot: version})

    return step


def slot_left(book: Book, slot: str) -> str:
    """Return the slot that ran before the one that runs now, where no update has led from there; else ""."""
    moving = book.job is not None and book.job.stage in ("installing", "installed", "restarting", "trial")
    return "" if moving or book.ran == slot else book.ran


def runs_in(slot: str, version: str, at: str, left: str, detail: str) -> Step:
    """Remember which slot runs, and which version that has. left: as `slot_left` says it; detail: words about that."""

    def step(book: Book) -> Book:
        if not slot:
            return book
        book = msgspec.structs.replace(
            found_in(slot, version)(book), ran=slot, left=left or ("" if book.left == slot else book.left)
        )
        return book.noting(Event(at=at, what="other-slot", version=version, detail=detail)) if left else book

    return step


def installed_in(slot: str, version: str) -> Step:
    """Remember that a slot was written anew: what it had before does not matter any more."""

    def step(book: Book) -> Book:
        book = found_in(slot, version)(book)
        return msgspec.structs.replace(book, left="") if book.left == slot else book

    return step


def offer(offered: Offered | None, at: str) -> Step:
    """A bundle was found on a medium, or the medium is gone."""

    def step(book: Book) -> Book:
        if offered == book.offered:
            return book
        book = msgspec.structs.replace(book, offered=offered)
        if offered is None:
            return book
        return book.noting(Event(at=at, what="offered", version=offered.version, detail=offered.path))

    return step
