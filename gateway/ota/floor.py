"""The floor of updates: what this device has accepted before, and goes below never again.

    <state>/ota/floors.json   the versions of the repository's metadata, and the fencing token of the twins

A file alone forgets when somebody puts an older copy of it in its place. Where there is a TPM it carries the number of
a counter there, and is authenticated under a key of the vault. To raise the floor, the file with the next number is
made durable first, and then the counter moves; so the number is the counter's, or one above it after a power cut, and
the counter is moved then. Any other number is a state that was restored, and whatever is not authentic was edited: from
either nothing is installed, until the bridge sets the floor anew (`establish`).

At level `software`, and as long as the TPM does not answer, the file counts as it stands.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from threading import RLock
from typing import Final

import msgspec
import structlog

from gateway.config import Vault as VaultSettings
from gateway.ota.clock import BUILT_NS
from gateway.ota.errors import FloorCounterError, FloorEditedError, FloorError, FloorRestoredError, StorageError
from gateway.ota.floor_file import FILE, Anchor, Document, FloorStatus, Held, Place, decode_document, read_document
from gateway.ota.trust import Floors
from gateway.ota.trust_store import make_directory, storage_error, write_durably
from gateway.vault.errors import (
    KeyStoreError,
    KeyStoreUnavailableError,
    PolicyRefusedError,
    VaultConfigError,
    VaultError,
)
from gateway.vault.files import locked
from gateway.vault.policy import FLOOR_COUNTER_INDEX
from gateway.vault.vault import Vault
from gateway.wire.messages import INT64_MAX
from gateway.wire.tokens import of_twin_ms

log = structlog.get_logger()

_GOES_ON: Final = "a stick does not do. What runs goes on"
_REMEDY: Final = (
    f"nothing is installed until the bridge has attested this device and sent its twin and fresh metadata; {_GOES_ON}"
)
_REMEDY_WITHOUT_IDENTITY: Final = (
    f"nothing is installed until the bridge has sent its twin and fresh metadata; {_GOES_ON}"
)

_NO_TPM: Final = "there is no TPM (vault.level software)"

_COUNTED: Final = ("root", "targets", "keys", "fencing_token")
"""What moves the counter. Timestamps and snapshots that list nothing new, and the time, are written under the same
number: they come every few days and every hour, and a TPM's memory is not made for so many writes."""


class Floor:
    """The floor of one device. Every method blocks, and may be called from any thread and program at once."""

    def __init__(self, file: Path, anchor: Anchor | None = None, *, has_identity: bool = True) -> None:
        """Take the file's place, and what holds it; nothing is read yet.

        Args:
            file: `<state>/ota/floors.json`.
            anchor: None where there is no TPM.
            has_identity: the bridge attests this device; where it does not, no words say to wait for that.
        """
        self._remedy = _REMEDY if has_identity else _REMEDY_WITHOUT_IDENTITY
        self._file = file
        self._anchor = anchor
        self._lock = RLock()
        self._good: bytes | None = None  # the file as it was found good, or written, last
        self._refusal: FloorError | None = None
        self._was_adopted = False
        self._away = ""
        self._status = FloorStatus()

    # ---- asking ------------------------------------------------------------------------------------------

    @property
    def refusal(self) -> FloorError | None:
        """Why nothing is installed, as it was found last; None: the floor stands."""
        return self._refusal

    @property
    def is_bound(self) -> bool:
        """Whether what was read last is bound to the TPM, not only a file."""
        return self._status.place == "tpm"

    @property
    def was_adopted(self) -> bool:
        """Whether this program has bound a file to the TPM that was not before."""
        return self._was_adopted

    @property
    def status(self) -> FloorStatus:
        """Where the floor lives, as it was found last."""
        return self._status

    def require(self) -> None:
        """Make sure that the floor stands, as it was found last. Raises FloorError."""
        if self._refusal is not None:
            raise type(self._refusal)(str(self._refusal))

    def peek(self) -> Held:
        """Return what the file says, and ask nobody whether it is so; nothing if it cannot be read."""
        try:
            return read_document(self._file).held
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Held()

    def look(self) -> FloorStatus:
        """Say how a gateway that starts now would find the floor, as far as its number tells; changes nothing."""
        try:
            document = read_document(self._file)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            document = Document()
        if self._anchor is None:
            return FloorStatus(problem=_NO_TPM)
        bare = FloorStatus(counter_index=FLOOR_COUNTER_INDEX, number=document.number)
        try:
            count = self._anchor.counter.floor_count()
        except VaultError as error:
            return msgspec.structs.replace(bare, problem=str(error))
        if count is None and not document.mac:
            return msgspec.structs.replace(bare, problem="it is bound to the TPM when the gateway starts")
        if document.mac and (count is None or document.number in (count, count + 1)):
            return msgspec.structs.replace(bare, place="tpm")
        problem = f"{self._file} has the number {document.number}, the counter in the TPM is {count}; {self._remedy}"
        return msgspec.structs.replace(bare, place="refused", code=FloorRestoredError.code, problem=problem)

    def read(self) -> Held:
        """Return the floor. A raising that a power cut has interrupted is ended, and a file from before is adopted.

        Raises:
            FloorError: it was restored or edited.
            StorageError: it cannot be read, or adopted.
        """
        with self._alone():
            return self._read()

    def raise_to(self, floors: Floors | None = None, *, fencing_token: int = 0, most_token: int = INT64_MAX) -> Held:
        """Make the floor at least as high as this, durably, and return it.

        A token above `most_token`, which programs before this one took, is no token of the bridge: it is forgotten.
        While the TPM does not answer nothing is written: who asks must ask again.

        Raises:
            FloorError: it was restored or edited.
            StorageError: the disk refuses; the floor is what it was.
        """
        with self._alone():
            before = self._read()
            higher = before.floors if floors is None else floors.joined(before.floors)
            known = before.fencing_token if before.fencing_token <= most_token else 0
            held = Held.of(higher, max(known, fencing_token))
            if held != before and not self._away:
                self._write(held, before)
            return held

    def lower_bound(self) -> Held:
        """Return what is certain of a floor that is refused: of an authentic file what it says, else nothing.

        Raises:
            StorageError: it cannot be read.
        """
        with self._alone():
            document = self._document()
            try:
                if document is not None and self._anchor is not None and document.is_authentic(self._anchor.key()):
                    return document.held
            except VaultError as error:
                log.debug("ota_floor_not_compared", error=str(error))
            return Held()

    def establish(self, held: Held) -> None:
        """Begin anew after a refusal, with what the bridge has just shown.

        Raises:
            StorageError: the disk refuses, or the TPM; it is refused as before.
        """
        with self._alone():
            assert self._anchor is not None
            try:
                # What was authenticated before, older copies too, is not from now on.
                self._begin(held, self._anchor, self._anchor.new_key())
            except VaultError as error:
                raise StorageError(f"the floor of updates cannot be set anew now: {error}") from error
            self._refusal = None
            log.warning("ota_floor_established", number=self._status.number, fencing_token=held.fencing_token)

    # ---- inside ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and programs away; they wait for the TPM at most."""
        make_directory(self._file.parent)
        try:
            with self._lock, locked(self._file.with_name(f"{self._file.name}.turn"), exclusive=True):
                yield
        except FloorError as error:
            self._refused(error)
            raise
        except VaultError as error:  # of the lock's file
            raise StorageError(str(error)) from error

    def _read(self) -> Held:
        content = self._content()
        if content is not None and content == self._good and not self._away:
            return decode_document(content).held
        document = self._document()
        if self._anchor is None:
            self._stands("file", document)
            return document.held if document is not None else Held()
        try:
            held = self._bound(document, self._anchor)
        except _AwayError as error:
            return self._without_tpm(document, str(error))
        self._answers()
        return held

    def _bound(self, document: Document | None, anchor: Anchor) -> Held:
        """Hold the file against the counter.

        Raises:
            FloorError: they do not agree.
            _AwayError: the TPM does not say.
        """
        key, count = self._asked(document, anchor)
        if document is None or not document.mac:
            return self._adopted(document, count, anchor)
        if not document.is_authentic(key):
            raise FloorEditedError(
                f"{self._file} is not what this device has written: it was edited or damaged; {self._remedy}"
            )
        if count is None or document.number == count + 1:
            with _away_if_it_fails():
                count = anchor.counter.count_floor()  # a raising, or the beginning, was interrupted
            log.info("ota_floor_raising_ended", number=document.number, counter=count)
        if document.number != count:
            raise FloorRestoredError(
                f"{self._file} has the number {document.number}, the counter in the TPM is {count}: an older state of "
                f"this device was put back, or another TPM is here; {self._remedy}"
            )
        self._stands("tpm", document)
        return document.held

    def _asked(self, document: Document | None, anchor: Anchor) -> tuple[bytes, int | None]:
        """Return the key and the counter's value, None if there is no counter."""
        try:
            key = anchor.key()
        except (KeyStoreError, VaultConfigError) as error:  # no weights are given out either
            raise _AwayError(str(error)) from error
        except VaultError as error:
            raise FloorEditedError(f"{error}; {self._remedy}") from error
        try:
            return key, anchor.counter.floor_count()
        except (KeyStoreUnavailableError, PolicyRefusedError) as error:
            raise _AwayError(str(error)) from error
        except VaultError as error:
            if document is None or not document.mac:
                raise _AwayError(str(error)) from error
            raise FloorCounterError(f"{error}; {self._remedy}") from error

    def _adopted(self, document: Document | None, count: int | None, anchor: Anchor) -> Held:
        """Take what was never bound to the TPM, once: that is so as long as there is no counter."""
        if count is not None:
            what = "is gone" if document is None else "is not bound to the TPM"
            raise FloorRestoredError(
                f"{self._file} {what}, and the counter in the TPM is {count}: an older state of this device was put "
                f"back, or it was removed; {self._remedy}"
            )
        held = document.held if document is not None else Held()
        with _away_if_it_fails():
            self._begin(held, anchor, anchor.key())
        if document is not None:
            self._was_adopted = True
            log.warning("ota_floor_adopted", file=str(self._file), number=self._status.number)
        return held

    def _begin(self, held: Held, anchor: Anchor, key: bytes) -> None:
        """Bind the floor to a counter that is there, or to one that begins."""
        count = anchor.counter.floor_count()
        number = anchor.counter.floor_forecast() if count is None else count + 1
        self._put(Document.sealed(held, number, key))
        counted = anchor.counter.count_floor()
        if counted != number:  # a TPM whose counters begin elsewhere
            self._put(Document.sealed(held, counted, key))

    def _write(self, held: Held, before: Held) -> None:
        """Write a floor that is higher than the one that was just read."""
        anchor = self._anchor
        if anchor is None:
            self._put(Document(**msgspec.structs.asdict(held)))
            return
        moves = any(getattr(held, name) != getattr(before, name) for name in _COUNTED)
        number = self._status.number + moves
        try:
            self._put(Document.sealed(held, number, anchor.key()))
            if moves:
                anchor.counter.count_floor()
        except VaultError as error:
            # The file is whole, and its number the counter's or the next one: the next reading ends it.
            self._good = None
            self._without_tpm(None, str(error))

    def _put(self, document: Document) -> None:
        content = msgspec.json.format(msgspec.json.encode(document)) + b"\n"
        write_durably(self._file, content)
        self._stands("tpm" if document.mac else "file", document)
        self._good = content

    # ---- the file ----------------------------------------------------------------------------------------

    def _content(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(self._file, error) from error

    def _document(self) -> Document | None:
        """Read the file; a damaged one is put aside and told, which without a TPM begins the floor anew."""
        content = self._content()
        if content is None:
            return None
        try:
            return decode_document(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            aside = self._file.with_name(f"{self._file.name}.damaged")
            log.error("ota_floors_damaged", file=str(self._file), kept_as=str(aside), reason=str(error))
            with contextlib.suppress(OSError):
                self._file.replace(aside)
            return None

    # ---- how it stands -----------------------------------------------------------------------------------

    def _stands(self, place: Place, document: Document | None) -> None:
        self._refusal = None
        number = document.number if document is not None else 0
        index = FLOOR_COUNTER_INDEX if self._anchor is not None else None
        problem = "" if self._anchor is not None else _NO_TPM
        self._status = FloorStatus(place=place, counter_index=index, number=number, problem=problem)

    def _refused(self, error: FloorError) -> None:
        self._good = None
        self._refusal = error
        self._status = FloorStatus(
            place="refused", counter_index=FLOOR_COUNTER_INDEX, code=error.code, problem=str(error)
        )

    def _without_tpm(self, document: Document | None, reason: str) -> Held:
        """Let the file count as it stands; what was refused before stays refused."""
        self.require()
        self._status = FloorStatus(place="file", counter_index=FLOOR_COUNTER_INDEX, problem=reason)
        if not self._away:
            log.warning("ota_floor_not_in_tpm", error=reason, consequence="the file counts as it stands")
        self._away = reason
        return document.held if document is not None else Held()

    def _answers(self) -> None:
        if self._away:
            log.info("ota_floor_in_tpm_again", number=self._status.number)
        self._away = ""


class _AwayError(Exception):
    """The TPM does not say now how the floor stands."""


@contextlib.contextmanager
def _away_if_it_fails() -> Iterator[None]:
    try:
        yield
    except VaultError as error:
        raise _AwayError(str(error)) from error


def known_ns(floor: Floor, clock_ns: int) -> int:
    """Return what time it is at least, UTC: under a clock that was never set the bridge's tokens would be far ahead."""
    return max(clock_ns, floor.peek().fresh_ns, BUILT_NS)


def most_token(floor: Floor, clock_ns: int) -> int:
    """Return the highest fencing token that is believed now."""
    return of_twin_ms(known_ns(floor, clock_ns))


def open_floor(vault: Vault, state_directory: Path, *, has_identity: bool = True) -> Floor:
    """Return the floor of a gateway, held by its vault where that has a TPM; nothing is asked yet."""
    counter = vault.floor_counter
    anchor = None if counter is None else Anchor(counter, vault.floor_key, vault.new_floor_key)
    return Floor(state_directory / "ota" / FILE, anchor, has_identity=has_identity)


def floor_for(settings: VaultSettings, state_directory: Path, *, has_identity: bool = True) -> Floor:
    """Return the floor of a gateway that another program may be running; nothing is asked yet.

    Raises:
        VaultConfigError: the vault cannot be used as configured.
    """
    if settings.level == "software":
        return Floor(state_directory / "ota" / FILE)
    return open_floor(Vault.open(settings, state_directory), state_directory, has_identity=has_identity)
