"""Media that somebody plugs in: which bundle on them is newer than what runs, and could be installed."""

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
_File = tuple[Path, int, int]
"""A bundle on a medium as `bundles_on` tells it: another size or time is another bundle."""


class MediaWatch:
    """Looks at media and offers the newest bundle. Belongs to the thread of the updates."""

    def __init__(self, settings: Os, journal: Journal, rauc: Rauc, around: Around) -> None:
        self._settings = settings
        self._journal = journal
        self._rauc = rauc
        self._around = around
        self._looked_at: float | None = None
        self._known: dict[_File, BundleFacts | None] = {}  # None: never installed here
        self._unread: set[_File] = set()  # what could not be looked at so far

    def look(self, status: SystemStatus) -> Job | None:
        """Look, if it is time; return what is to be installed by itself, if the settings say so and nothing else is.

        A version is begun by itself once, also when it was there before the settings said so or while something else
        was under way. Not again: a stick that stays plugged in must not undo what a person or the bridge wants instead.

        Raises:
            OsJournalError: the offer cannot be written down.
        """
        now = self._around.monotonic()
        if self._settings.media == "off" or (self._looked_at is not None and now - self._looked_at < MEDIA_SECONDS):
            return None
        self._looked_at = now
        offered = self._newest(status)
        if offered != self._journal.book.offered:
            self._journal.change(steps.offer(offered, rfc3339(self._around.wall_ns())))
            if offered is not None:
                log.info("os_offered", version=offered.version, path=offered.path)
                self._around.note(
                    "os_offered", "info", f"a medium has version {offered.version}: `gateway os install {offered.path}`"
                )
        book = self._journal.book
        if self._settings.media != "install" or book.job is not None:
            return None
        if offered is None or offered.version in book.taken:
            return None
        return Job(compatible=status.compatible, version=offered.version, origin="medium", source=offered.path)

    def _newest(self, status: SystemStatus) -> Offered | None:
        found = bundles_on(self._settings.media_directories)
        self._known = {key: facts for key, facts in self._known.items() if key in found}
        self._unread.intersection_update(found)
        for key in found:
            if key not in self._known:
                self._read(key, status)
        best = max(
            ((facts, key[0]) for key, facts in self._known.items() if facts is not None and self._is_newer(facts)),
            key=lambda each: version_key(each[0].version),
            default=None,
        )
        return Offered(version=best[0].version, path=str(best[1])) if best is not None else None

    def _read(self, key: _File, status: SystemStatus) -> None:
        """Look what a bundle is; one that cannot be read now is looked at again with the next look."""
        path = str(key[0])
        try:
            facts = self._rauc.info(path)
            require_installable(
                facts, self._around.release, compatible=status.compatible, counter=self._around.counter()
            )
        except BundleRefusedError as error:
            log.warning("os_bundle_on_medium_unusable", path=path, code=error.code, reason=str(error))
            self._known[key] = None
        except OtaError as error:
            if key not in self._unread:
                log.warning("os_bundle_on_medium_unread", path=path, code=error.code, reason=str(error))
            self._unread.add(key)
        else:
            if key in self._unread:
                self._unread.remove(key)
                log.info("os_bundle_on_medium_read", path=path)
            self._known[key] = facts

    def _is_newer(self, facts: BundleFacts) -> bool:
        """Tell whether a bundle is newer than what runs, and was not tried in vain."""
        release = self._around.release
        if release is not None and version_key(facts.version) <= version_key(release.version):
            return False
        return self._journal.book.is_blocked(facts.compatible, facts.version) is None
