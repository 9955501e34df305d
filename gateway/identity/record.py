"""What the device keeps about its identity between two starts: whom it believes, and how late it is at least."""

import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from gateway.errors import ConfigError
from gateway.identity.errors import IdentityError
from gateway.statefiles import is_passing, read_patiently, words_of

log = structlog.get_logger()

_MAX_BYTES: Final = 1 << 20


class IdentityRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The file `identity.json`. Nothing in it is secret."""

    url: str = ""
    bundle: str = ""  # PEM
    trust_domain: str = ""
    enrolled: bool = False
    level: str = ""
    floor_ns: int = 0


class IdentityFiles:
    """The directory `identity` below the state directory."""

    def __init__(self, state_directory: Path) -> None:
        """Nothing is read or made yet."""
        self.directory = state_directory / "identity"
        self._file = self.directory / "identity.json"
        self._aside = self.directory / "identity.damaged"
        self._claim = self.directory / "claim"
        self._claim_told = False

    def read(self) -> IdentityRecord:
        """Read the record.

        One that is damaged is kept aside, and an empty one returned: the device enrols again. One that was put aside by
        a disk which failed for a while is taken back.

        Raises:
            IdentityError: it cannot be read now, though that may pass; nothing was put aside.
        """
        try:
            return self._decoded(self._file)
        except FileNotFoundError:
            return self._taken_back()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            if is_passing(error):
                raise IdentityError(words_of(self._file, error)) from error
            log.warning("identity_record_damaged", file=str(self._file), kept_as=self._aside.name, error=str(error))
            try:
                self._file.replace(self._aside)
            except OSError as failure:
                log.warning("identity_record_stays", file=str(self._file), error=str(failure))
            return IdentityRecord()

    def look(self) -> IdentityRecord:
        """Return the record for one who only looks; an empty one where it cannot be read. Nothing is moved."""
        try:
            return self._decoded(self._file)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return IdentityRecord()

    def _decoded(self, file: Path) -> IdentityRecord:
        return msgspec.json.decode(read_patiently(file, _MAX_BYTES), type=IdentityRecord)

    def _taken_back(self) -> IdentityRecord:
        """Return what was put aside if it can be read now; the claim was used up, so that no other would come."""
        try:
            record = self._decoded(self._aside)
            self._aside.replace(self._file)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return IdentityRecord()
        log.info("identity_record_taken_back", file=str(self._aside))
        return record

    def write(self, record: IdentityRecord) -> None:
        """Replace the record durably.

        Raises:
            IdentityError: it cannot be written.
        """
        self._replace(self._file, msgspec.json.format(msgspec.json.encode(record)), 0o600)

    def read_claim(self) -> str | None:
        """Return the claim code that `gateway identity enrol` has left here; None when there is none.

        One that cannot be read is told in the log, once.
        """
        try:
            text = self._claim.read_text("utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            told = isinstance(error, FileNotFoundError) or self._claim_told
            if not told:
                log.warning("claim_unreadable", file=str(self._claim), error=words_of(self._claim, error))
            self._claim_told = not isinstance(error, FileNotFoundError)
            return None
        self._claim_told = False
        return text

    def leave_claim(self, code: str) -> None:
        """Leave a claim code for the running gateway.

        Raises:
            IdentityError: it cannot be written.
        """
        self._replace(self._claim, code.encode("utf-8") + b"\n", 0o600)

    def drop_claim(self) -> None:
        """Remove the claim code: it is good for one enrolment."""
        self._claim.unlink(missing_ok=True)

    def _replace(self, file: Path, content: bytes, mode: int) -> None:
        temporary = file.with_name(file.name + ".new")
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with open(handle, "wb") as out:  # noqa: PTH123 - a file that never had other permissions
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(file)
            directory = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise IdentityError(
                f"{file}: {error.strerror or error}; the gateway's user must own its directory"
            ) from error


def read_claim_file(file: Path) -> str:
    """Read a claim code that the configuration names.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"identity.claim_file {file}: {error}; write the code of `cloud-bridge identity token create` into it"
        ) from error
