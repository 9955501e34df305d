"""Brings a bundle: found, looked at before it is trusted, fetched or streamed, and handed to RAUC."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from gateway.config import Os
from gateway.osupdate import journal as steps
from gateway.osupdate.around import Around
from gateway.osupdate.bundles import Bundles, OfferedBundle
from gateway.osupdate.errors import InstallFailedError, NotAsAnnouncedError, OsUpdateError, StreamingFailedError
from gateway.osupdate.journal import Job, Journal
from gateway.osupdate.rauc import Rauc, SystemStatus
from gateway.osupdate.relay import Relayed
from gateway.osupdate.release import BundleFacts, require_installable
from gateway.osupdate.telling import Telling
from gateway.ota.errors import NotOfferedError, OtaError, TrustError

log = structlog.get_logger()

MAX_STREAMS: Final = 3
"""So often streaming is tried before the bundle is downloaded instead."""
_TOLD_SECONDS: Final = 10.0


class Bringing:
    """Brings and installs bundles. Belongs to the thread of the updates, `drop_all_but` and `stop` excepted."""

    def __init__(
        self, settings: Os, journal: Journal, rauc: Rauc, bundles: Bundles | None, *, telling: Telling, around: Around
    ) -> None:
        """Take parts. bundles: None where there is no repository: then bundles come from files alone."""
        self._settings = settings
        self._journal = journal
        self._rauc = rauc
        self._bundles = bundles
        self._telling = telling
        self._around = around
        self._fetching = ""  # the version that is being fetched
        self._path: Path | None = None  # of the bundle that was fetched

    @property
    def is_at_hand(self) -> bool:
        """Whether a bundle was fetched, and not forgotten since."""
        return self._path is not None

    def bring(self, job: Job, status: SystemStatus) -> tuple[BundleFacts, int]:
        """See to it that the bundle is at hand; return what it is, and its bytes where the repository has it.

        Raises:
            OtaError: it cannot be had now, or must not be installed.
        """
        if job.source:
            facts = self._rauc.info(job.source)
            self.require(job, facts, status)
            return facts, 0
        bundle = self._offered(job)
        self.require(job, bundle.says.facts, status)
        if not self._streams(job, bundle):
            self._fetch(job, bundle)
        return bundle.says.facts, bundle.file.size_bytes

    def require(self, job: Job, facts: BundleFacts, status: SystemStatus) -> None:
        """Check that a bundle is what was announced, and may be installed here.

        Raises:
            BundleRefusedError: it is not, or may not.
        """
        if (facts.compatible, facts.version) != (job.compatible, job.version):
            raise NotAsAnnouncedError(
                f"it says that it is {facts.compatible} {facts.version}, and was announced as {job.compatible} "
                f"{job.version}"
            )
        require_installable(facts, self._around.release, compatible=status.compatible, counter=self._around.counter())

    def install(self, job: Job, progress: Callable[[int, str], None]) -> None:
        """Have RAUC install what was brought.

        Raises:
            OtaError: it did not.
        """
        if job.source:
            self._rauc.install(job.source, progress)
            return
        bundle = self._offered(job)
        assert self._bundles is not None
        if not self._streams(job, bundle):
            self._path = self._bundles.fetch(bundle, lambda _count: None)  # it is here, unless somebody removed it
            self._rauc.install(str(self._path), progress)
            return
        seen = Relayed()
        try:
            with self._bundles.streamed(bundle, seen) as address:
                self._rauc.install(address, progress)
        except InstallFailedError as error:
            if seen.error is not None:
                raise seen.error from error  # why the relay had nothing to give: no fault of streaming
            self._journal.change(steps.amend(streams=job.streams + 1))
            raise StreamingFailedError(str(error)) from error
        finally:
            self._around.metrics.fetched(seen.bytes)
            self._journal.change(steps.amend(fetched_bytes=seen.bytes))

    # ---- when it is not wanted any more ---------------------------------------------------------------------

    def drop_all_but(self, version: str | None) -> None:
        """End the fetching of another version; any thread."""
        if self._fetching and self._fetching != version and self._bundles is not None:
            self._bundles.stop()

    def forget(self) -> None:
        """Take nothing as fetched."""
        self._path = None

    def clear(self) -> None:
        """Remove what was fetched."""
        self._path = None
        if self._bundles is not None:
            self._bundles.clear()

    def stop(self) -> None:
        """Have what is under way end soon; any thread."""
        if self._bundles is not None:
            self._bundles.stop()

    def resume(self) -> None:
        """Work again after a stop."""
        if self._bundles is not None:
            self._bundles.resume()

    # ---- inside ---------------------------------------------------------------------------------------------

    def _offered(self, job: Job) -> OfferedBundle:
        if self._bundles is None:
            raise OsUpdateError(
                "there is no repository to fetch it from: set `ota` with `url`, or `gateway os install FILE`"
            )
        passing: OtaError | None = None
        try:
            self._bundles.refresh()
        except TrustError:
            raise
        except OtaError as error:
            passing = error
            log.info("os_repository_not_refreshed", code=error.code, error=str(error))  # what is known may do
        try:
            return self._bundles.find(job.compatible, job.version)
        except NotOfferedError as error:
            # A list from before the release says nothing about it. A refusal would count against the rollout.
            if passing is not None:
                raise passing from error
            raise

    def _streams(self, job: Job, bundle: OfferedBundle) -> bool:
        """Tell whether RAUC is to read the bundle over the network."""
        assert self._bundles is not None
        if not bundle.can_stream or self._settings.delivery == "download":
            return False
        room = self._bundles.has_room(bundle)
        if job.streams >= MAX_STREAMS and room:
            return False
        return self._settings.delivery == "stream" or bundle.says.adaptive or not room

    def _fetch(self, job: Job, bundle: OfferedBundle) -> None:
        assert self._bundles is not None
        self._telling.say(job, "fetching", full_bytes=bundle.file.size_bytes)
        told = [self._around.monotonic()]

        def progress(count: int) -> None:
            now = self._around.monotonic()
            if now - told[0] >= _TOLD_SECONDS:
                told[0] = now
                log.info("os_fetching", version=job.version, fetched_bytes=count, of_bytes=bundle.file.size_bytes)
                self._telling.say(job, "fetching", fetched_bytes=count, full_bytes=bundle.file.size_bytes)

        self._fetching = job.version
        try:
            self._path = self._bundles.fetch(bundle, progress)
        finally:
            self._fetching = ""
        self._around.metrics.fetched(bundle.file.size_bytes)
        self._journal.change(steps.amend(fetched_bytes=bundle.file.size_bytes))
        facts = self._rauc.info(str(self._path))
        if facts.compatible != job.compatible or facts.version != job.version:
            raise NotAsAnnouncedError(
                f"the bundle is {facts.compatible} {facts.version}; the repository has it as {job.compatible} "
                f"{job.version}"
            )
