"""What outlives a power cut of updates over the air: one small document, replaced whole before each step.

    <state>/ota/journal.json   what runs, what is on trial, what is the way back, what is wanted, blocked, pinned
    <state>/ota/fence          the highest fencing token that was accepted, once more: it must not be forgotten with it
    <state>/ota/verdicts.json  what is blocked, pinned, and still to be proved, once more, for the same reason

Each step of an update is written down before it is taken. Whoever is killed between the two finds at the next start a
document that names a release which lies there whole: the old one, or the new one. The one exception is taking a
release back (`Journal.insist`): that must not wait for a disk that is full.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
import structlog

from gateway.errors import GatewayError
from gateway.ota.errors import OtaError
from gateway.statefiles import is_passing, read_patiently, understood, words_of
from gateway.vault.errors import VaultError
from gateway.vault.files import write_durably
from gateway.wire.manifest import Baseline, ImageInput, ModelManifest, WindowInput
from gateway.wire.messages import INT64_MAX, UpdateState
from gateway.wire.plain import so_many

log = structlog.get_logger()

DIRECTORY: Final = "ota"
FILE: Final = "journal.json"
FENCE: Final = "fence"
VERDICTS: Final = "verdicts.json"
MAX_HISTORY: Final = 100
_MAX_BYTES: Final = 4 << 20
_MAX_ASIDE: Final = 8

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


class MadeFor(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest says of the inputs of its release."""

    input: ImageInput | WindowInput
    baseline: Baseline = Baseline()

    @classmethod
    def of(cls, manifest: ModelManifest) -> "MadeFor":
        """Take it out of a manifest."""
        return cls(input=manifest.input, baseline=manifest.baseline or Baseline())


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What the release before did lately on this very device; the one on trial is held against it."""

    scores: tuple[float, ...] = ()  # best score of each sample, 0 without a finding
    labels: dict[str, int] = {}  # how often each label was the best; "" for none
    latency_p95_ms: float | None = None
    error_share: Share = 0.0  # of samples without an answer
    inputs: dict[str, tuple[float, ...]] = {}  # statistics of the samples, as `Measure.inputs` names them, in order
    tensor: dict[str, tuple[float, ...]] = {}  # of what the model was given of them
    made_for: MadeFor | None = None  # by the manifest of that release


class OnTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A release that serves, and has not proved itself yet."""

    since_ns: int  # of the first swap, UTC
    running: bool = True  # a run of the pipeline is under way, or ended without saying so
    boot_id: str = ""  # of the machine's boot in which that run began
    crashes: int = 0
    outages: int = 0  # runs that ended with the whole machine
    reference: Reference = Reference()
    way_back: Installed | None = None  # what was the way back of the release before, and is again if this is taken back

    @property
    def bad_ends(self) -> int:
        """How many runs under it ended badly. Two outages count as one: a plug is pulled more often than a model hangs
        a machine, and one that does so must not go on for ever.
        """
        return self.crashes + self.outages // 2

    @property
    def words(self) -> str:
        """How its runs ended badly, for people."""
        outages = f", and {so_many(self.outages, 'time')} the whole device went down" if self.outages else ""
        return f"{so_many(self.crashes, 'run')} under it ended badly{outages}"


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """A release that this device has taken back or refused, and does not try again by itself."""

    model: Installed
    code: str
    reason: str
    at: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the last twin, or a person, gives to a pipeline and it does not run yet."""

    model: Installed
    token: int
    attempt: int = 0
    by_hand: bool = False


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
    what: (
        str  # accepted, withdrawn, kept, swapped, proven, reverted, refused, pinned, unpinned, crashed, outage, missing
    )
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
    unproved: tuple[Installed, ...] = ()  # of those, what no pipeline has kept yet: it runs where it is on trial alone
    history: tuple[Event, ...] = ()  # the oldest first

    def slot(self, pipeline: str) -> Slot:
        """Return the slot of a pipeline, a fresh one if nothing was written about it."""
        return self.pipelines.get(pipeline, Slot())

    def with_slot(self, pipeline: str, slot: Slot, *events: Event) -> "Book":
        """Return the document with another slot and a longer history."""
        history = (*self.history, *events)[-MAX_HISTORY:]
        return msgspec.structs.replace(self, pipelines=self.pipelines | {pipeline: slot}, history=history)


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """What a lost journal must not make forgotten: by pipeline, and what must not run without a trial."""

    format: int = 1
    blocked: dict[str, tuple[Blocked, ...]] = {}
    pinned: dict[str, Installed] = {}
    unproved: tuple[Installed, ...] = ()

    @classmethod
    def of(cls, book: Book) -> "Verdicts":
        """Take them out of the document."""
        return cls(
            blocked={name: slot.blocked for name, slot in book.pipelines.items() if slot.blocked},
            pinned={name: slot.pinned for name, slot in book.pipelines.items() if slot.pinned is not None},
            unproved=book.unproved,
        )

    def book(self) -> Book:
        """Return a document that knows nothing else."""
        names = [*dict.fromkeys((*self.blocked, *self.pinned))]
        slots = {name: Slot(blocked=self.blocked.get(name, ()), pinned=self.pinned.get(name)) for name in names}
        return Book(pipelines=slots, unproved=self.unproved)


class Journal:
    """The document on disk and in memory. Every method may be called from any thread; `change` waits for the disk."""

    def __init__(
        self,
        state_directory: Path,
        came: Iterable[Installed] = (),
        *,
        fencing_token: int = 0,
        most_token: int = INT64_MAX,
        instead: int = 0,
    ) -> None:
        """Read what is there; a document that cannot be read is kept beside, and `damage` says so.

        Args:
            state_directory: of the gateway.
            came: releases in the store that are known to have come over the air; those that the document does not
                name, because it was lost, are entered.
            fencing_token: the highest that is known from elsewhere (`gateway.ota.floor`).
            most_token: a higher one is none of the bridge; programs before this one took it.
            instead: what counts in its place; the time in milliseconds, below which no twin of the bridge is new.

        Raises:
            JournalError: the directory cannot be made, or the document cannot be read now, though that may pass.
        """
        self.directory = state_directory / DIRECTORY
        self.damage = ""
        self._file = self.directory / FILE
        self._fence = self.directory / FENCE
        self._verdicts_file = self.directory / VERDICTS
        self._lock = threading.RLock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for part in self.directory.glob(".*.part"):  # of a write that was killed
                if part.is_file():
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise JournalError(f"{self.directory} cannot be made: {error.strerror or error}") from error
        self._came = [*came]
        self._verdicts = _verdicts_in(self._verdicts_file)
        self._token = self._read_fence()  # as it is on the disk
        self._is_first = False  # nothing was ever written
        self._is_whole = False  # what was written last could be read
        self._book = _at_least(self._read(), fencing_token)
        ahead = self._book.fencing_token > most_token
        if ahead:
            log.error("ota_fence_disbelieved", fencing_token=self._book.fencing_token, instead=instead)
            self._book = msgspec.structs.replace(self._book, fencing_token=instead, twin_version=0)
        missing = [each for each in self._came if each not in self._book.installed]
        if missing:
            self._book = _entered(self._book, missing, is_whole=self._is_whole)
        self._unwritten = bool(self.damage or missing or ahead)

    @property
    def book(self) -> Book:
        """The document as it counts now; as it was written last, but for what was insisted on."""
        return self._book

    @property
    def is_written(self) -> bool:
        """Whether everything that counts is on the disk."""
        return not self._unwritten

    def change(self, step: Callable[[Book], Book]) -> Book:
        """Apply a step and make the result durable; when this returns it survives a power cut.

        Raises:
            JournalError: the disk refuses; on disk and in memory is what was there before.
        """
        with self._lock:
            book = step(self._book)
            if book != self._book:
                self._write(book)
                self._book, self._unwritten = book, False
            return book

    def insist(self, step: Callable[[Book], Book]) -> Book:
        """Apply a step that counts at once, whether or not the disk takes it: `flush`, or the next change, writes it.

        For what must not wait: a bad release is taken back on a full disk, too. Until it is written, the next start
        begins with what was there before, and judges that anew.
        """
        with self._lock:
            book = step(self._book)
            self._unwritten = self._unwritten or book != self._book
            self._book = book
            return book

    def flush(self) -> None:
        """Write what was insisted on, if anything is left.

        Raises:
            JournalError: the disk still refuses.
        """
        with self._lock:
            if self._unwritten:
                self._write(self._book)
                self._unwritten = False

    def _write(self, book: Book) -> None:
        """Write the copies first: with the journal behind them nothing is lost, with them behind it something could."""
        verdicts = Verdicts.of(book)
        try:
            if self._is_first:  # else copies without a journal would look as if it had been lost
                write_durably(self._file, msgspec.json.encode(Book()))
                self._is_first = False
            if book.fencing_token != self._token:
                write_durably(self._fence, b"%d\n" % book.fencing_token)
                self._token = book.fencing_token
            if verdicts != (self._verdicts or Verdicts()):
                write_durably(self._verdicts_file, msgspec.json.encode(verdicts))
                self._verdicts = verdicts
            write_durably(self._file, msgspec.json.encode(book))
        except VaultError as error:
            raise JournalError(f"{error}; no release is swapped until it can be") from error

    def _read(self) -> Book:
        try:
            book = read_book(self._file)
            self._is_whole = True
        except FileNotFoundError:
            book = self._recovered()
            # What has come over the air was named in a journal before it was stored.
            self._is_first = not self._token and self._verdicts is None and not self._came
            if not self._is_first:
                self._lost()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if is_passing(error):
                raise JournalError(words_of(self._file, error)) from error
            book = self._recovered()
            self._put_aside(str(error))
        return _at_least(book, self._token)

    def _recovered(self) -> Book:
        return Book() if self._verdicts is None else self._verdicts.book()

    def _lost(self) -> None:
        kept = "" if self._verdicts is not None else ", and which releases were blocked is not known any more"
        self.damage = self.damage or f"{self._file} is gone: pipelines run what is pinned or configured{kept}"
        log.error("ota_journal_lost", file=str(self._file), verdicts_known=self._verdicts is not None)

    def _put_aside(self, reason: str) -> None:
        aside = _free_name(self._file)
        kept = "" if self._verdicts is not None else ", and which releases were blocked is not known any more"
        self.damage = (
            f"{self._file} cannot be read ({reason}): kept as {aside.name}, pipelines run what is pinned or "
            f"configured{kept}"
        )
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
            if is_passing(error):
                raise JournalError(words_of(self._fence, error)) from error
            self.damage = self.damage or f"{self._fence} cannot be read: {error}"
            log.error("ota_fence_unreadable", file=str(self._fence), error=str(error))
            return 0


def _entered(book: Book, missing: Sequence[Installed], *, is_whole: bool) -> Book:
    """Enter releases from the air that a document does not name.

    A document that could be read had named them before they were stored. They were given up, and who stored them all
    the same was killed before it could say so: nobody has proved them. Of one that was lost, the copy still knows what
    is to be proved.
    """
    unproved = (*book.unproved, *missing) if is_whole else book.unproved
    return msgspec.structs.replace(book, installed=(*book.installed, *missing), unproved=unproved)


def _at_least(book: Book, fencing_token: int) -> Book:
    return msgspec.structs.replace(book, fencing_token=max(book.fencing_token, fencing_token))


def _free_name(file: Path) -> Path:
    """Return where a damaged file is kept; what was kept before stays, within reason."""
    names = [f"{file.name}.damaged", *(f"{file.name}.damaged-{number}" for number in range(2, _MAX_ASIDE + 1))]
    return next((name for name in map(file.with_name, names) if not name.exists()), file.with_name(names[-1]))


def read_book(file: Path) -> Book:
    """Read a document, as far as this program understands it.

    Raises:
        OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not there, or cannot be read.
    """
    found = understood(read_patiently(file, _MAX_BYTES), Book)
    if found.left_out:  # of a newer program: after falling back, what runs and what is blocked still counts
        log.warning("ota_journal_of_another_program", file=str(file), not_understood=found.left_out)
    return found.value


class Seen(NamedTuple):
    """What a journal says to one who only looks, and what is wrong with it; empty: nothing."""

    book: Book
    damage: str


def look(state_directory: Path) -> Seen:
    """Read what a gateway that starts now would begin with, and change nothing: what is damaged is its to put aside.

    Raises:
        JournalError: whoever looks may not read it, or it cannot be read now, though that may pass.
    """
    directory = state_directory / DIRECTORY
    file = directory / FILE
    verdicts = _verdicts_in(directory / VERDICTS)
    book, damage = Book() if verdicts is None else verdicts.book(), ""
    try:
        book = read_book(file)
    except FileNotFoundError:
        if verdicts is not None:
            damage = f"{file} is gone: pipelines run what is pinned or configured"
    except PermissionError as error:
        raise JournalError(
            f"{file}: {error.strerror}; look as the user whom the gateway runs as, or as root"
        ) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if is_passing(error):
            raise JournalError(words_of(file, error)) from error
        damage = f"{file} cannot be read ({error}): the gateway puts it aside, and tells so, when it starts next"
    with contextlib.suppress(OSError, ValueError):  # the gateway that starts tells of a fence that cannot be read
        token = int((directory / FENCE).read_text(encoding="ascii"))
        book = _at_least(book, token)
    return Seen(book, damage)


def peek(state_directory: Path, came: Iterable[Installed] = ()) -> Book:
    """Return what a gateway that starts now would find, and change nothing; for those who only look.

    Args:
        state_directory: of the gateway.
        came: as of `Journal`.
    """
    directory = state_directory / DIRECTORY
    is_whole = True
    try:
        book = read_book(directory / FILE)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        book, is_whole = Book(), False
        with contextlib.suppress(JournalError):
            verdicts = _verdicts_in(directory / VERDICTS)
            book = book if verdicts is None else verdicts.book()
    return _entered(book, [each for each in came if each not in book.installed], is_whole=is_whole)


def _verdicts_in(file: Path) -> Verdicts | None:
    """Read the second copy of what is blocked and pinned; None if there is none that can be read.

    Raises:
        JournalError: it cannot be read now, though that may pass.
    """
    try:
        return understood(read_patiently(file, _MAX_BYTES), Verdicts).value
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if is_passing(error):
            raise JournalError(words_of(file, error)) from error
        log.warning("ota_verdicts_unreadable", file=str(file), error=str(error), meaning="written again with the next")
        return None
