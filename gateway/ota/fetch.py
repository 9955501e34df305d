"""The repository as one device sees it: refreshed and verified, what it offers, and the files of that.

<state>/ota/metadata/    metadata as last verified; may be removed at any time
<state>/ota/floors.json  what was accepted before, and is never gone below; see `gateway.ota.floor`
<state>/ota/manifests/   manifests by their digest
<state>/ota/imported/    files of releases that a person has brought, by their digest
"""

import hashlib
import os
import platform
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import structlog

from gateway.config import Ota
from gateway.ota.clock import FlooredClock
from gateway.ota.errors import (
    BadReleaseError,
    ExpiredError,
    IncompleteError,
    MismatchError,
    NoRootError,
    NotOfferedError,
    NotThereError,
    OtaError,
    TooLongError,
    TrustError,
    WrongHardwareError,
)
from gateway.ota.fetch_budget import ASK_BYTES, Purse, Spend
from gateway.ota.fetch_file import Download, Wanted, part_of
from gateway.ota.fetch_offer import Listed, Offer, OfferedFile, listed, offer_of, offered, release_of
from gateway.ota.fetch_pace import Limits, Pace
from gateway.ota.floor import Floor
from gateway.ota.floor_file import FILE as FLOORS_FILE
from gateway.ota.floor_file import Held
from gateway.ota.trust import MAX_BYTES, MAX_ROOTS, Floors, Role, Trust
from gateway.ota.trust_store import MetadataFiles, storage_error
from gateway.ota.ways import DirectoryWay, Way

log = structlog.get_logger()

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
REFRESH_SECONDS: Final = 120.0
"""For one file of metadata, all tries together."""

FRESH_STEP_NS: Final = 3_600_000_000_000
"""The time of the last refresh is written down when it has moved by so much: it may not wear the disk out."""

_DAY_NS: Final = 86_400_000_000_000


class _Signed(msgspec.Struct):
    version: int


class _Numbered(msgspec.Struct):
    """What is read of metadata before they are verified."""

    signed: _Signed


def _nobody(_have_bytes: int) -> None:
    """Nobody is told of progress."""


class Repository:
    """One repository. Every method blocks; one thread at a time. `stop` may be called from any thread."""

    def __init__(
        self,
        settings: Ota,
        state_directory: Path,
        way: Way,
        *,
        meter: Spend,
        now_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        floor: Floor | None = None,
        files: MetadataFiles | None = None,
        metadata_limits: Limits | None = None,
        file_limits: Limits | None = None,
        built_ns: int | None = None,
    ) -> None:
        """Read what is known already; nothing is asked for yet.

        Args:
            settings: the section `ota`.
            state_directory: of the gateway; everything is kept in `ota` below it.
            way: where files come from.
            meter: asked before anything is fetched.
            now_ns: the best clock there is, UTC; it is held against what is known to have passed.
            monotonic_ns: for deadlines and rates.
            floor: what was accepted before; by default a file below the state directory, which no TPM holds.
            files: where metadata are kept; by default below the state directory.
            metadata_limits: how long and how slow metadata may come.
            file_limits: the same for files; by default what the settings say.
            built_ns: time that has passed for certain; by default the age of this program.
        """
        self._settings = settings
        self._way = way
        self._meter = meter
        self._monotonic_ns = monotonic_ns
        self._offline_ns = int(settings.offline_days * _DAY_NS)
        self._metadata_limits = metadata_limits or Limits(REFRESH_SECONDS, min(64, settings.min_bytes_per_second))
        self._file_limits = file_limits or Limits(settings.deadline_seconds, settings.min_bytes_per_second)
        self._clock = FlooredClock(now_ns) if built_ns is None else FlooredClock(now_ns, built_ns=built_ns)
        home = state_directory / "ota"
        self._files = files or MetadataFiles(home / "metadata", home / FLOORS_FILE)
        self._floor = floor or Floor(self._files.floors_file)
        self._manifests = home / "manifests"
        self._imported = home / "imported"
        self._kept_anchor: bytes | None = None  # as it was when it could be read first
        # The event loop may be waiting: whether the file may be believed is asked before anything is decided by it.
        self._floors, self._is_bound = self._floor.peek().floors, False
        self._clock.learn(self._floors.fresh_ns)
        self._began_ns = self._clock.now_ns()
        self._held_back = False  # the last refresh found nothing but what has expired
        self._expires_ns: int | None = None  # of what is kept, UTC; None: not looked at yet, or nothing whole is kept
        self._stop = threading.Event()

    @property
    def hardware(self) -> str:
        """What this device calls itself when a release is limited to some hardware."""
        return self._settings.hardware or platform.machine()

    def stop(self) -> None:
        """Have whatever is under way end soon, with `StoppedError`, and so everything until `resume`."""
        self._stop.set()

    def resume(self) -> None:
        """Work again after a stop."""
        self._stop.clear()

    # ---- metadata ----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the metadata up to date (TUF §5.3 to §5.6). What was verified before a failure is kept.

        Raises:
            TrustError: what came is not to be believed.
            FetchError: nothing, or not all, could be had now.
            FloorError: what was accepted before is not known for certain.
            StorageError: it cannot be kept.
        """
        with self._files.locked(self._stop.wait):
            written = self._known()  # a person may have imported meanwhile
            trust = self._begin()
            try:
                self._update_all(trust)
            finally:
                self._files.settle()
                if _is_worth_writing(written, trust.floors):
                    self._floor.raise_to(trust.floors)
                self._floors = trust.floors

    def establish(self, fencing_token: int) -> None:
        """Refresh, and let what comes be the floor anew, with a fencing token; for a floor that is refused.

        The way must be the bridge's: what lies on a stick may be as old as what was put back.

        Raises:
            TrustError, FetchError, StorageError: as `refresh`; the floor is refused as before.
        """
        with self._files.locked(self._stop.wait):
            self._floors = self._floor.lower_bound().floors
            trust = self._begin()
            try:
                self._update_all(trust)
            finally:
                self._files.settle()
            self._floor.establish(Held.of(trust.floors, fencing_token))
            self._floors, self._is_bound = trust.floors, True

    def verify(self) -> None:
        """Verify again what is kept, at the present time, and ask nobody: for sites without any way.

        Raises:
            TrustError: it is not there, damaged, or has expired.
            IncompleteError: a refresh was cut off.
        """
        self._cached()

    @property
    def stale_since_ns(self) -> int | None:
        """Since when, UTC, the metadata count as stale; None while they are fresh. Nothing stops because of it."""
        since = (self._floors.fresh_ns or self._began_ns) + int(self._settings.stale_after_days * _DAY_NS)
        if self._expires_ns is not None:  # who freezes a device may as well answer nothing
            since = min(since, self._expires_ns)
        now = self._clock.now_ns()
        return since if now >= since else now if self._held_back else None

    def _begin(self) -> Trust:
        try:
            return Trust(self._anchor(), self._floors, self._clock.now_ns(), offline_ns=self._offline_ns)
        except TrustError as error:
            self._kept_anchor = None  # another file may be put there
            raise type(error)(
                f"ota.root_file {self._settings.root_file} is no root to begin with ({error}); there are no updates "
                "until it is: copy the first root.json of the repository there"
            ) from error

    def _anchor(self) -> bytes:
        """Read the first root; a medium that comes later, or a file that is put there, counts from then on."""
        if self._kept_anchor is None:
            self._kept_anchor = _read_anchor(self._settings.root_file)
        return self._kept_anchor

    def _known(self) -> Floors:
        """Learn what was accepted before; returns what is written of it. Raises FloorError, StorageError."""
        held = self._floor.read().floors
        # What a file said while the TPM did not answer is worth nothing once it does.
        joined = self._is_bound or not self._floor.is_bound
        self._floors, self._is_bound = self._floors.joined(held) if joined else held, self._floor.is_bound
        self._clock.learn(self._floors.fresh_ns)
        return held

    def _update_all(self, trust: Trust) -> None:
        """Bring everything up to date; the floors of `trust` are then those of what came."""
        try:
            self._update(trust)
        except OtaError as error:
            self._held_back = self._held_back or isinstance(error, ExpiredError)
            self._expires_ns = self._kept_until_ns()  # a person may have imported, and this is a new start's first look
            raise
        self._held_back, self._expires_ns = False, trust.expires_ns
        fresh = max(trust.floors.fresh_ns, min(self._clock.now_ns(), trust.expires_ns))
        trust.floors = msgspec.structs.replace(trust.floors, fresh_ns=fresh)
        self._clock.learn(fresh)
        self._sweep(trust)

    def _update(self, trust: Trust) -> None:
        self._follow_roots(trust)
        cached = self._files.read("timestamp")
        if cached is not None:
            self._try(trust.add_timestamp, cached)
        data = self._metadata("timestamp", None, MAX_BYTES["timestamp"])
        if trust.add_timestamp(data):
            self._files.write("timestamp", data)
        self._update_snapshot(trust)
        self._update_targets(trust)

    def _follow_roots(self, trust: Trust) -> None:
        """Follow the chain (§5.3): what is kept of it first, then what the source has."""
        newest = self._anchor()
        try:
            for _ in range(MAX_ROOTS):
                version = trust.root_version + 1
                data = self._files.read_root(version)
                if data is None or not self._try(trust.add_root, data):
                    data = self._metadata("root", version, MAX_BYTES["root"])
                    trust.add_root(data)
                    self._files.write_root(version, data)
                newest = data
        except NotThereError:  # this is the newest
            trust.end_of_roots()
        else:
            raise TrustError(f"root: more than {MAX_ROOTS} new versions at once")
        finally:
            self._files.write("root", newest)

    def _update_snapshot(self, trust: Trust) -> None:
        cached = self._files.read("snapshot")
        if cached is not None and self._try(lambda data: trust.add_snapshot(data, cached=True), cached):
            return
        version, limit = trust.snapshot_wanted
        data = self._metadata("snapshot", version if trust.consistent else None, limit)
        trust.add_snapshot(data)
        self._files.write("snapshot", data)

    def _update_targets(self, trust: Trust) -> None:
        cached = self._files.read("targets")
        if cached is not None and self._try(trust.add_targets, cached):
            return
        version, limit = trust.targets_wanted
        data = self._metadata("targets", version if trust.consistent else None, limit)
        trust.add_targets(data)
        self._files.write("targets", data)

    @staticmethod
    def _try(add: Callable[[bytes], object], kept: bytes) -> bool:
        """Add what is kept, if it is still good; if not, the source must have better."""
        try:
            add(kept)
        except TrustError as error:
            log.debug("ota_kept_metadata_not_final", reason=str(error))
            return False
        return True

    def _metadata(self, role: Role, version: int | None, limit: int) -> bytes:
        """Read metadata from the source, never more than the limit."""
        path = f"metadata/{role}.json" if version is None else f"metadata/{version}.{role}.json"
        pace = Pace(path, self._metadata_limits, self._monotonic_ns)
        pace.begin()
        content = bytearray()
        with (
            Purse(self._meter, counted_elsewhere=self._way.counted_elsewhere) as purse,
            closing(self._way.read(path, 0, limit + 1)) as pieces,
        ):
            purse.take(ASK_BYTES, path)
            purse.used(ASK_BYTES, path)
            for chunk in pieces:
                content += chunk
                purse.used(len(chunk), path)
                if len(content) > limit:
                    raise TooLongError(f"{path}: longer than the {limit} bytes that are read of it")
                pace.took(len(chunk))
        return bytes(content)

    def _cached(self) -> Trust:
        """Verify what is kept and return it; read anew each time, so that nothing stays believed in memory."""
        self._known()
        return self._all_kept(self._begin())

    def _all_kept(self, trust: Trust) -> Trust:
        """Add everything that is kept to a root to begin with. Raises TrustError, IncompleteError."""
        while (kept := self._files.read_root(trust.root_version + 1)) is not None:
            trust.add_root(kept)
        trust.end_of_roots()
        trust.add_timestamp(self._kept("timestamp"))
        self._require_of_now("snapshot", trust.snapshot_wanted[0])
        trust.add_snapshot(self._kept("snapshot"))
        self._require_of_now("targets", trust.targets_wanted[0])
        trust.add_targets(self._kept("targets"))
        return trust

    def _require_of_now(self, role: Role, version: int) -> None:
        """Make sure that a refresh has not ended before it came to this list. Raises IncompleteError."""
        content = self._files.read(role)
        found = None if content is None else _version_of(content)
        if content is None or found not in (None, version):
            here = f"version {found}" if content is not None else "none"
            raise IncompleteError(
                f"{role}: version {version} is what counts now, and {here} is here: the last refresh or import was cut "
                "off, by the link's budget for one; `gateway ota refresh`, or `gateway ota import` of a whole copy, "
                "brings the rest"
            )

    def _kept_until_ns(self) -> int | None:
        """Return until when what is kept is believed, UTC; what was known before where it is not whole now."""
        try:
            return self._all_kept(Trust(self._anchor(), self._floors, 0, offline_ns=self._offline_ns)).expires_ns
        except OtaError as error:
            log.debug("ota_kept_metadata_not_whole", reason=str(error))
            return self._expires_ns

    def _kept(self, role: Role) -> bytes:
        content = self._files.read(role)
        if content is None:
            raise MismatchError(f"{role}: not here yet; a refresh or an import brings it")
        return content

    def _sweep(self, trust: Trust) -> None:
        """Remove manifests and imported files of releases that are not offered any more."""
        known = {offered(path, target).sha256 for path, target in trust.files.items()}
        for directory in (self._manifests, self._imported):
            if not directory.is_dir():
                continue
            for file in directory.iterdir():
                # A part is called `.<digest>.<first digits of it>.part`.
                if file.name.removeprefix(".").partition(".")[0] not in known:
                    file.unlink(missing_ok=True)

    # ---- releases ----------------------------------------------------------------------------------------

    def listed(self) -> list[Listed]:
        """Return every release of the verified list, newest token first, whatever its hardware. Raises TrustError."""
        return listed(self._cached().files)

    def offer(self, name: str, version: str) -> Offer:
        """Return a release that this device may install, from verified metadata; only its manifest is fetched.

        Raises:
            NotOfferedError: it is not in the list.
            WrongHardwareError: it is for other hardware.
            BadReleaseError: it contradicts itself or is too large.
            TrustError: the metadata are not there or not good any more.
            FetchError: the manifest cannot be had now.
        """
        trust = self._cached()
        release = release_of(trust.files, name, version)
        self.require_hardware(release.listed)
        if release.listed.size_bytes > self._settings.max_release_bytes:
            raise BadReleaseError(
                f"{name} {version}: {release.listed.size_bytes} bytes in all, at most "
                f"{self._settings.max_release_bytes} are taken (ota.max_release_bytes)"
            )
        return offer_of(release, self._manifest(trust, release.manifest))

    def digest(self, name: str, version: str) -> str:
        """Return what the content key of a release goes by: the SHA-256 of its manifest.

        Raises:
            NotOfferedError: it is not in the list.
            TrustError, IncompleteError: the metadata are not there or not good any more.
        """
        return release_of(self._cached().files, name, version).manifest.sha256

    def require_hardware(self, head: Listed) -> None:
        """Make sure that a release is for this hardware. Raises WrongHardwareError."""
        if head.hardware and self.hardware not in head.hardware:
            raise WrongHardwareError(
                f"{head.name} {head.version} is for {', '.join(head.hardware)}; this device is {self.hardware!r} "
                "(ota.hardware)"
            )

    def _manifest(self, trust: Trust, file: OfferedFile) -> bytes:
        if file.size_bytes > MAX_MANIFEST_BYTES:
            raise BadReleaseError(f"{file.path}: {file.size_bytes} bytes are too many for a manifest")
        kept = self._manifests / file.sha256
        content = _read(kept)
        if content is None or hashlib.sha256(content).hexdigest() != file.sha256:
            self._get(trust, file, kept, _nobody)
            content = _read(kept)
            if content is None or hashlib.sha256(content).hexdigest() != file.sha256:
                raise storage_error(kept, OSError("does not read back as it was written"))
            # Manifests are fetched one after another: what was interrupted before is of a release wanted no more.
            for part in self._manifests.glob(".*.part"):
                part.unlink(missing_ok=True)
        return content

    # ---- files -------------------------------------------------------------------------------------------

    def fetch(self, file: OfferedFile, to: Path, progress: Callable[[int], None] = _nobody) -> Path:
        """Fetch a file of an offer to `to`, which is there, whole and durable, when this returns.

        A second call goes on at the byte where the first one was interrupted, also after a restart.

        Raises:
            TrustError: what came is not what was signed.
            FetchError: not now.
            StorageError: the disk refuses.
        """
        if _is_there(to, file):
            return to
        imported = self._imported / file.sha256
        if imported.is_file():
            try:
                here = Wanted(file.sha256, file.size_bytes, file.sha256)
                taken = self._download(here, to, progress).run(DirectoryWay(self._imported))
            except (TrustError, NotThereError) as error:
                log.warning("ota_imported_file_bad", file=file.path, reason=str(error))
            else:
                if not self._has_another_use(file):
                    imported.unlink(missing_ok=True)
                return taken
            imported.unlink(missing_ok=True)
        return self._get(self._cached(), file, to, progress)

    def lacking(self, file: OfferedFile, to: Path) -> int:
        """Return how many bytes `fetch` would ask the way for; what lies here already is taken to be good."""
        if file.size_bytes in (_size_of(to), _size_of(self._imported / file.sha256)):
            return 0
        return max(0, file.size_bytes - _size_of(part_of(to, file.sha256)))

    def keep(self, file: OfferedFile) -> bool:
        """Fetch a file for later, so that `fetch` needs no way then; False: it was kept already."""
        to = self._imported / file.sha256
        if to.is_file() and to.stat().st_size == file.size_bytes:
            return False
        self._get(self._cached(), file, to, _nobody)
        return True

    def _has_another_use(self, file: OfferedFile) -> bool:
        """Tell whether another release has the same bytes, as golden files often are."""
        same = {path for path, each in self._cached().files.items() if offered(path, each).sha256 == file.sha256}
        return bool(same - {file.path})

    def target(self, path: str) -> OfferedFile:
        """Return any file of the signed list, whatever it is. Raises NotOfferedError, TrustError."""
        found = self._cached().files.get(path)
        if found is None:
            raise NotOfferedError(f"{path[:200]}: not in the signed list")
        return offered(path, found)

    def targets(self, directory: str) -> list[OfferedFile]:
        """Return the files of the signed list below a directory, such as `os/`, by path. Raises TrustError."""
        found = self._cached().files
        return [offered(path, found[path]) for path in sorted(found) if path.startswith(directory)]

    def _get(self, trust: Trust, file: OfferedFile, to: Path, progress: Callable[[int], None]) -> Path:
        directory, _, name = file.path.rpartition("/")
        name = f"{file.sha256}.{name}" if trust.consistent else name  # TUF §6.2
        place = f"targets/{directory}/{name}" if directory else f"targets/{name}"
        return self._download(Wanted(place, file.size_bytes, file.sha256), to, progress).run(self._way)

    def _download(self, wanted: Wanted, to: Path, progress: Callable[[int], None]) -> Download:
        pace = Pace(wanted.path, self._file_limits, self._monotonic_ns)
        return Download(wanted, to, pace=pace, meter=self._meter, stop=self._stop, progress=progress)


def _is_worth_writing(written: Floors, floors: Floors) -> bool:
    """Tell whether the disk must learn of floors: of each version, at once, and of the time now and then."""
    same = msgspec.structs.replace(floors, fresh_ns=written.fresh_ns) == written
    return not same or floors.fresh_ns - written.fresh_ns >= FRESH_STEP_NS


def _read_anchor(root_file: Path) -> bytes:
    try:
        with root_file.open("rb") as source:
            content = source.read(MAX_BYTES["root"] + 1)
    except OSError as error:
        raise NoRootError(
            f"ota.root_file {root_file}: {error.strerror or error}; there are no updates until it can be read: "
            "copy the first root.json of the repository there"
        ) from error
    if len(content) > MAX_BYTES["root"]:
        raise NoRootError(f"ota.root_file {root_file}: longer than {MAX_BYTES['root']} bytes: this is no root.json")
    return content


def _is_there(path: Path, file: OfferedFile) -> bool:
    """Tell whether a file has been fetched before, and is as it was then."""
    try:
        with path.open("rb") as source:
            return (
                os.fstat(source.fileno()).st_size == file.size_bytes
                and hashlib.file_digest(source, "sha256").hexdigest() == file.sha256
            )
    except OSError:
        return False


def _size_of(path: Path) -> int:
    """Return how many bytes a file has, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _version_of(content: bytes) -> int | None:
    """Read the version of metadata that nobody has verified yet; None where it says none."""
    try:
        return msgspec.json.decode(content, type=_Numbered).signed.version
    except msgspec.DecodeError:
        return None


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None
