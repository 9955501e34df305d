"""Whether anything may be installed: looks at the floor of updates, and has the bridge set one anew that is refused.

A floor that was restored or edited says nothing any more of what this device has accepted. Then only the bridge knows:
it must have attested this device since, its twin must have come over the link, and fresh metadata by the way that is
configured.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import structlog

from gateway.ota.around import Means
from gateway.ota.errors import FloorError, OtaError, StorageError
from gateway.ota.floor import Floor, known_ns, most_token
from gateway.ota.journal import Installed, Journal, JournalError

log = structlog.get_logger()

LOOK_SECONDS: Final = 10.0
"""Between two looks at the floor, and two tries to have it set anew."""


class Footing:
    """What updates stand on. `stands` belongs to the thread that fetches, everything else to the one of the wishes."""

    def __init__(self, means: Means, again: Callable[[bytes], None]) -> None:
        """Take parts.

        Args:
            means: of the agent.
            again: takes a twin that has waited for the floor.
        """
        self._floor = means.floor
        self._journal = means.journal
        self._repository = means.repository
        self._around = means.around
        self._again = again
        self._waiting: tuple[bytes, int] | None = None  # the newest twin that came meanwhile, and its token
        self._attested_before: int | None = None
        self._told = ""
        self._failed = ""
        self._adopted_told = False
        self._look_at = 0.0  # monotonic

    def most_token(self) -> int:
        """Return the highest fencing token that is believed now."""
        return most_token(self._floor, self._around.known_ns())

    def accepts(self, payload: bytes, fencing_token: int) -> bool:
        """Tell whether a twin may count now; one that may not is handed over again when the floor stands.

        Raises:
            JournalError: the floor cannot be read now; to be asked again.
        """
        try:
            self._floor.read()
        except FloorError as error:
            self._tell(error)
            if fencing_token >= self._journal.book.fencing_token:
                self._waiting = (payload, fencing_token)
                self._look_at = 0.0
            return False
        except StorageError as error:
            raise JournalError(str(error)) from error
        return True

    def raise_to(self, fencing_token: int) -> None:
        """Make sure that no lower token is accepted ever again, before this one is acted upon.

        Raises:
            JournalError: the floor cannot be raised now.
        """
        try:
            self._floor.raise_to(fencing_token=fencing_token, most_token=self.most_token())
        except (FloorError, StorageError) as error:
            raise JournalError(str(error)) from error

    def stands(self) -> bool:
        """Look at the floor where that is due; what is refused is set anew if everything for that is there."""
        now = self._around.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            try:
                # What was accepted while the TPM did not answer is in the journal alone.
                self._floor.raise_to(fencing_token=self._journal.book.fencing_token, most_token=self.most_token())
            except FloorError as error:
                self._tell(error)
                self._set_anew()
            except StorageError as error:
                log.debug("ota_floor_not_looked_at", error=str(error))  # a refresh tells
            else:
                self._told = ""
                self._tell_adopted()
        return self._floor.refusal is None

    def _set_anew(self) -> None:
        waiting, attested = self._waiting, self._around.attested()
        if waiting is None or (attested is not None and attested <= (self._attested_before or 0)):
            return
        try:
            self._repository.establish(waiting[1])
        except OtaError as error:
            if str(error) != self._failed:
                log.warning("ota_floor_not_established", code=error.code, error=str(error))
            self._failed = str(error)
            return
        newest, self._waiting = self._waiting, None
        self._told = self._failed = ""
        words = f"the bridge has set the floor of updates anew, with the fencing token {waiting[1]}: updates go on"
        self._around.note("ota_floor_established", "warning", words)
        self._again(waiting[0])
        if newest is not None and newest != waiting:  # one more came while the repository was asked
            self._again(newest[0])

    def _tell_adopted(self) -> None:
        if self._floor.was_adopted and not self._adopted_told:
            words = "the floor of updates was a file alone, and is bound to the TPM from now on; this happens once"
            self._around.note("ota_floor_adopted", "warning", words)
            self._adopted_told = True

    def _tell(self, error: FloorError) -> None:
        if self._told == error.code:
            return
        if not self._told:
            self._attested_before = self._around.attested()
            self._around.renew()
        self._told = error.code
        log.error("ota_floor_refused", code=error.code, reason=str(error))
        self._around.note("ota_floor_refused", "error", f"{error.code}: {error}")


def open_journal(state_directory: Path, came: Iterable[Installed], floor: Floor, now_ns: int) -> Journal:
    """Read the journal, with a fence that can be of our bridge.

    A token beyond belief, which programs before this one took, counts as the time: of the bridge's twins only a newer
    one has a higher token.

    Args:
        state_directory: of the gateway.
        came: see `Journal`.
        floor: of this device.
        now_ns: the time as far as the bridge has told it, UTC.

    Raises:
        JournalError: as `Journal`.
    """
    return Journal(
        state_directory,
        came=came,
        fencing_token=floor.peek().fencing_token,
        most_token=most_token(floor, now_ns),
        instead=known_ns(floor, now_ns) // 1_000_000,
    )
