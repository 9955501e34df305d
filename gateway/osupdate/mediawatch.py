"""Media that somebody plugs in: which bundle on them is newer than what runs, and could be installed."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from gateway.config import Os
from gateway.osupdate import journal as steps
from gateway.osupdate.around import Around
from gateway.osupdate.errors import BundleRefusedError
from gateway.osupdate.journal import Job, Journal, Offered
from gateway.osupdate.media import bundles_on
from gateway.osupdate.rauc import Rauc, SystemStatus
from gateway.osupdate.release import BundleFacts, require_installable
from gateway.osupdate.versions import version_key
from gateway.ota.errors import OtaError
from gateway.wire.times import rfc3339

log = structlog.get_logger()

MEDIA_SECONDS: Final = 10.0
MAX_AGAIN_SECONDS: Final = 1800.0
"""Between two looks at a bundle that cannot be read; a medium that is plugged in anew is looked at at once."""
_File = tuple[Path, int, int]
"""A bundle on a medium as `bundles_on` tells it: another size or time is another bundle."""


@dataclass(frozen=True, slots=True)
class _Unread:
    """A bundle that could not be looked at."""

    again_at: float
    pause: float


class MediaWatch:
    """Looks at media and offers the newest bundle. Belongs to the thread of the updates."""

    def __init__(self, settings: Os, journal: Journal, rauc: Rauc, around: Around) -> None:
        self._settings = settings
        self._journal = journal
        self._rauc = rauc
        self._around = around
        self._looked_at: float | None = None
        # All about media as long as they are plugged in.
        self._known: dict[_File, BundleFacts | None] = {}  # None: never installed here
        self._unread: dict[_File, _Unread] = {}  # what could not be looked at so far
        self._begun: set[_File] = set()  # what was begun by itself

    def look(self, status: SystemStatus) -> Job | None:
        """Look, if it is time; return what is to be installed by itself, if the settings say so and nothing else is.

        A version is begun by itself once, also when it was there before the settings said so or while something else
        was under way. Not again: a stick that stays plugged in must not undo what a person or the bridge wants instead.
        One that was given up because its medium gave nothing is begun again when that is plugged in anew.

        Raises:
            OsJournalError: the offer cannot be written down.
        """
        now = self._around.monotonic()
        if self._settings.media == "off":
            return None
        is_time = self._looked_at is None or now - self._looked_at >= MEDIA_SECONDS
        if not is_time and not self._unread and not self._begun:
            return None
        found = bundles_on(self._settings.media_directories)
        self._forget_all_but(found)  # each time: a person is quick to pull a stick and to plug it in again
        if not is_time:
            return None
        self._looked_at = now
        for key in found:
            if key not in self._known and (key not in self._unread or now >= self._unread[key].again_at):
                self._read(key, status)
        best = self._newest()
        self._offer(best)
        return self._to_begin(best, status)

    def _offer(self, best: _File | None) -> None:
        facts = self._known[best] if best is not None else None
        offered = Offered(version=facts.version, path=str(best[0])) if best is not None and facts is not None else None
        if offered == self._journal.book.offered:
            return
        self._journal.change(steps.offer(offered, rfc3339(self._around.wall_ns())))
        if offered is not None:
            log.info("os_offered", version=offered.version, path=offered.path)
            self._around.note(
                "os_offered", "info", f"a medium has version {offered.version}: `gateway os install {offered.path}`"
            )

    def _to_begin(self, best: _File | None, status: SystemStatus) -> Job | None:
        book = self._journal.book
        if self._settings.media != "install" or book.job is not None or book.offered is None or best is None:
            return None
        # Begun, and not among what was taken: it was given up, and the medium has not been pulled out since.
        if book.offered.version in book.taken or best in self._begun:
            return None
        return Job(
            compatible=status.compatible, version=book.offered.version, origin="medium", source=book.offered.path
        )

    def note_begun(self, job: Job) -> None:
        """Take note that a job of `look` is in the journal: until its medium is pulled out it is not begun again."""
        self._begun.update(key for key in self._known if str(key[0]) == job.source)

    def _forget_all_but(self, found: Collection[_File]) -> None:
        """Forget what is not plugged in any more."""
        self._known = {key: facts for key, facts in self._known.items() if key in found}
        self._unread = {key: unread for key, unread in self._unread.items() if key in found}
        self._begun.intersection_update(found)

    def _newest(self) -> _File | None:
        """Return the newest bundle; of two that are the same version the one that was not begun before."""
        return max(
            ((facts, key) for key, facts in self._known.items() if facts is not None and self._is_newer(facts)),
            key=lambda each: (version_key(each[0].version), each[1] not in self._begun),
            default=(None, None),
        )[1]

    def _read(self, key: _File, status: SystemStatus) -> None:
        """Look what a bundle is; one that cannot be read now is looked at again, after longer and longer pauses."""
        path = str(key[0])
        before = self._unread.pop(key, None)
        try:
            facts = self._rauc.info(path)
            require_installable(
                facts, self._around.release, compatible=status.compatible, counter=self._around.counter()
            )
        except BundleRefusedError as error:
            log.warning("os_bundle_on_medium_unusable", path=path, code=error.code, reason=str(error))
            self._around.note("os_medium_unusable", "warning", f"{path}: {error}")
            self._known[key] = None
        except OtaError as error:
            if before is None:
                log.warning("os_bundle_on_medium_unread", path=path, code=error.code, reason=str(error))
            pause = min(MAX_AGAIN_SECONDS, 2 * before.pause) if before is not None else MEDIA_SECONDS
            self._unread[key] = _Unread(self._around.monotonic() + pause, pause)
        else:
            if before is not None:
                log.info("os_bundle_on_medium_read", path=path)
            self._known[key] = facts

    def _is_newer(self, facts: BundleFacts) -> bool:
        """Tell whether a bundle is newer than what runs, and was not tried in vain."""
        release = self._around.release
        if release is not None and version_key(facts.version) <= version_key(release.version):
            return False
        return self._journal.book.is_blocked(facts.compatible, facts.version) is None
