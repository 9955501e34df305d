"""What was spent, in a file that survives restarts and power cuts."""

import os
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from gateway.metering.periods import Account
from gateway.outbox.ages import SavedAge

log = structlog.get_logger()

FILE_NAME: Final = "link-usage.json"


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is remembered: the accounts by name, and the clock they go by."""

    accounts: dict[str, Account] = {}
    age: SavedAge | None = None


class Bookkeeper(Protocol):
    """Where the meter finds and leaves its book."""

    def read(self) -> Book:
        """Return what was remembered."""
        ...

    def write(self, book: Book) -> None:
        """Remember a book."""
        ...


class ReadOnlyLedger:
    """What the file of another process says; nothing is written, and a damaged file counts as none."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Book:
        """Return what is remembered."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Book)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return Book()

    def write(self, book: Book) -> None:
        """Leave the file as it is."""


class Ledger:
    """One file, replaced as a whole. Not thread-safe; may block for a sync."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._failing = False

    def read(self) -> Book:
        """Return what was remembered. A file that is not readable is put aside, and a new book begins."""
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=Book)
        except FileNotFoundError:
            return Book()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("link_usage_unreadable", file=str(self.file), reason=str(error), remedy="budgets begin anew")
            self._put_aside()
            return Book()

    def write(self, book: Book) -> None:
        """Make a book durable. Where the disk does not let us, that is logged, and counting goes on in memory."""
        temporary = self.file.with_name(self.file.name + ".tmp")
        try:
            with temporary.open("wb") as out:
                out.write(msgspec.json.encode(book))
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(self.file)
            directory = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            if not self._failing:
                reason = error.strerror or str(error)
                log.error("link_usage_not_written", file=str(self.file), reason=reason)
            self._failing = True
            return
        if self._failing:
            log.info("link_usage_written_again", file=str(self.file))
        self._failing = False

    def _put_aside(self) -> None:
        try:
            self.file.replace(self.file.with_name(self.file.name + ".damaged"))
        except OSError as error:
            log.warning("link_usage_not_put_aside", file=str(self.file), reason=error.strerror or str(error))
