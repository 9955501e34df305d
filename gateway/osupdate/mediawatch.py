"""Media that somebody plugs in: which bundle on them is newer than what runs, and could be installed."""

from pathlib import Path
from typing import Final

import structlog

from gateway.config import Os
from gateway.osupdate import journal as steps
from gateway.osupdate.around import Around
from gateway.osupdate.journal import Job, Journal, Offered
from gateway.osupdate.media import bundles_on
from gateway.osupdate.rauc import Rauc, SystemStatus
from gateway.osupdate.release import BundleFacts, require_installable
from gateway.osupdate.versions import version_key
from gateway.ota.errors import OtaError
from gateway.wire.times import rfc3339

log = structlog.get_logger()

MEDIA_SECONDS: Final = 10.0


class MediaWatch:
    """Looks at media and offers the newest bundle. Belongs to the thread of the updates."""

    def __init__(self, settings: Os, journal: Journal, rauc: Rauc, around: Around) -> None:
        self._settings = settings
        self._journal = journal
        self._rauc = rauc
        self._around = around
        self._looked_at: float | None = None
        self._known: dict[tuple[Path, int, int], BundleFacts | None] = {}

    def look(self, status: SystemStatus) -> Job | None:
        """Look, if it is time; return what is to be installed by itself, if the settings say so and nothing else is.

        Raises:
            OsJournalError: the offer cannot be written down.
        """
        now = self._around.monotonic()
        if self._settings.media == "off" or (self._looked_at is not None and now - self._looked_at < MEDIA_SECONDS):
            return None
        self._looked_at = now
        offered = self._newest(status)
        if offered == self._journal.book.offered:
            return None
        self._journal.change(steps.offer(offered, rfc3339(self._around.wall_ns())))
        if offered is None:
            return None
        log.info("os_offered", version=offered.version, path=offered.path)
        self._around.note(
            "os_offered", "info", f"a medium has version {offered.version}: `gateway os install {offered.path}`"
        )
        if self._settings.media != "install" or self._journal.book.job is not None:
            return None
        return Job(compatible=status.compatible, version=offered.version, origin="medium", source=offered.path)

    def _newest(self, status: SystemStatus) -> Offered | None:
        found = bundles_on(self._settings.media_directories)
        self._known = {key: facts for key, facts in self._known.items() if key in found}
        for key in found:
            if key not in self._known:
                self._known[key] = self._newer(key[0], status)
        best = max(
            ((facts, key[0]) for key, facts in self._known.items() if facts is not None),
            key=lambda each: version_key(each[0].version),
            default=None,
        )
        return Offered(version=best[0].version, path=str(best[1])) if best is not None else None

    def _newer(self, file: Path, status: SystemStatus) -> BundleFacts | None:
        """Return what a bundle on a medium is, if it could be installed and is newer than what runs."""
        release = self._around.release
        try:
            facts = self._rauc.info(str(file))
            require_installable(facts, release, compatible=status.compatible, counter=self._around.counter())
        except OtaError as error:
            log.warning("os_bundle_on_medium_unusable", path=str(file), code=error.code, reason=str(error))
            return None
        if release is not None and version_key(facts.version) <= version_key(release.version):
            return None
        if self._journal.book.is_blocked(facts.compatible, facts.version) is not None:
            return None
        return facts
