"""Brings a release from the repository into the vault's store: chooses, fetches, decrypts, makes, proves, seals.

Plaintext exists in memory alone. Everything here may be interrupted anywhere and done again: what was fetched is kept
until the release is stored, and the store takes a release whole or not at all.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

import msgspec
import structlog

from gateway.config import Pipeline
from gateway.inference.backend import Backend
from gateway.inference.select import Choice, choices_for, default_backends
from gateway.metering.meter import Allowance
from gateway.ota import canary
from gateway.ota.canary_child import Answer
from gateway.ota.errors import BudgetSpentError, OtaError, StorageError
from gateway.ota.fetch_budget import carries
from gateway.ota.fetch_offer import Offer, OfferedFile
from gateway.ota.patch import ZSTD, PatchError, Recipe, make
from gateway.vault.damage import damage_of
from gateway.vault.errors import (
    DamagedContainerError,
    KeyMissingError,
    KeyStoreError,
    LeaseEndedError,
    VaultError,
    WrongKeyError,
)
from gateway.vault.files import remove_directory, write_durably
from gateway.vault.store import ReleaseDirectory, read_release
from gateway.vault.vault import Vault
from gateway.vault.weights import SealedWeights
from gateway.wire.manifest import MANIFEST_FILE, OVER_THE_AIR_FILE, Artefact
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_SPARE_BYTES: Final = 16 << 20
_WITHHELD: Final = (KeyMissingError, KeyStoreError, LeaseEndedError, WrongKeyError)

T = TypeVar("T", bound=msgspec.Struct)


class InstallError(OtaError):
    """The release cannot be brought into the store."""

    code: ClassVar[str] = "install"


class NothingForUsError(InstallError):
    """The release has nothing that this device can run."""

    code = "no-artefact"


class DamagedReleaseError(InstallError):
    """What is signed for does not make what the manifest names."""

    code = "digest"


class KeyAwaitedError(InstallError):
    """The content key of the release is not on this device, or not given out now."""

    code = "key"


class NoSpaceError(InstallError):
    """The disk has no room for it."""

    code = "no-space"


class Source(Protocol):
    """Where files come from: `gateway.ota.fetch.Repository`."""

    def refresh(self) -> None: ...
    def offer(self, name: str, version: str) -> Offer: ...
    def lacking(self, file: OfferedFile, to: Path) -> int: ...
    def fetch(self, file: OfferedFile, to: Path, progress: Callable[[int], None] = ...) -> Path: ...


class ArtefactFile(msgspec.Struct, frozen=True, kw_only=True):
    """`custom` of a sealed artefact in the repository."""

    target: str
    packed: str = ""
    sha256: str
    size_bytes: int


class PatchFile(msgspec.Struct, frozen=True, kw_only=True):
    """`custom` of a sealed patch in the repository."""

    target: str
    method: str
    base_version: str = ""
    base_sha256: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Base:
    """An artefact of the store that a patch can be applied to."""

    directory: Path
    artefact: Artefact


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be fetched for one artefact."""

    offer: Offer
    choice: Choice
    full: OfferedFile
    patch: OfferedFile | None = None  # cheaper than the full file, and its base is here
    base: Base | None = None

    @property
    def digest(self) -> str:
        """What grants name the release by."""
        return hashlib.sha256(self.offer.manifest_bytes).hexdigest()

    @property
    def label(self) -> str:
        """`name version`, for messages."""
        return f"{self.offer.name} {self.offer.version}"

    @property
    def golden(self) -> tuple[OfferedFile, ...]:
        """The golden inputs of the artefact."""
        target = self.choice.artefact.target
        names = {n for each in self.offer.manifest.golden if each.target == target for n in (each.input, each.output)}
        return tuple(each for each in self.offer.files if each.path.rpartition("/")[2] in names)


@dataclass(frozen=True, slots=True)
class Stored:
    """What is in the store now, and what it cost."""

    release: ReleaseDirectory
    fetched_bytes: int
    full_bytes: int  # of the compressed full files
    patched: bool
    patch_failed: str = ""  # why the full file was fetched though there was a patch


class Installer:
    """Brings releases into one vault. Its methods block; one thread at a time."""

    def __init__(
        self,
        vault: Vault,
        source: Source,
        directory: Path,
        *,
        allowance: Callable[[], Allowance | None],
        is_closed: Callable[[], bool] = lambda: False,
        backends: Callable[[Pipeline], tuple[Backend, ...]] = default_backends,
    ) -> None:
        """Take what is needed.

        Args:
            vault: whose store it is.
            source: where files come from.
            directory: for what is on its way.
            allowance: what the link's budget still has, and until when; None: any number of bytes.
            is_closed: whether the link waits for its window to open.
            backends: what this machine may run a release on.
        """
        self._vault = vault
        self._source = source
        self._directory = directory / "incoming"
        self._allowance = allowance
        self._is_closed = is_closed
        self._backends = backends

    def allowance(self) -> Allowance | None:
        """Return what the link's budget still has, and until when; None: any number of bytes."""
        return self._allowance()

    def waits_for_window(self) -> bool:
        """Tell whether nothing may be fetched until the link's window opens."""
        return self._is_closed()

    def require_budget(self, size_bytes: int, what: str) -> None:
        """Make sure that the link's budget carries so much, or that no period of it could. Raises BudgetSpentError."""
        allowance = self._allowance()
        if allowance is not None and not carries(allowance, size_bytes):
            raise BudgetSpentError(
                f"{what} {size_bytes} bytes over the link, whose budget has {allowance.left_bytes} left until "
                f"{rfc3339(allowance.renews_at_ns)}; it goes on then, or at once from a stick: `gateway ota import`, "
                "then `gateway ota install`"
            )

    def bytes_to_fetch(self, plan: Plan) -> int:
        """Return how many bytes of a plan must pass over the link at least: what was brought or fetched is here."""
        files = ((each, self._place_of_golden(plan.offer, each)) for each in plan.golden)
        return self._lacking(plan.offer, plan.patch or plan.full) + sum(self._source.lacking(*each) for each in files)

    def plan(self, offer: Offer, settings: Pipeline) -> Plan:
        """Choose what to fetch: the artefact for this device, as a patch if that costs less and its base is here.

        Raises:
            NothingForUsError: there is nothing that can run here.
        """
        choices = choices_for(offer.manifest, settings.backend, self._backends(settings))
        if not choices.usable:
            raise NothingForUsError(
                f"{offer.name} {offer.version} has nothing for this device: {'; '.join(choices.passed_over) or 'empty'}"
            )
        choice = choices.usable[0]
        full = next((file for file in offer.files if _fits(file, choice.artefact)), None)
        if full is None:
            raise NothingForUsError(f"{offer.name} {offer.version}: {choice.artefact.file} is not in the repository")
        found = [(file, base) for file in offer.files if (base := self._base(file, choice.artefact)) is not None]

        def cost(file: OfferedFile) -> tuple[int, int]:
            return self._lacking(
                offer, file
            ), file.size_bytes  # a full file that a person has brought costs the link nothing

        smaller = [each for each in found if cost(each[0]) < cost(full)]
        if not smaller:
            return Plan(offer, choice, full)
        patch, base = min(smaller, key=lambda each: cost(each[0]))
        return Plan(offer, choice, full, patch, base)

    def is_stored(self, plan: Plan) -> ReleaseDirectory | None:
        """Return the release if its artefact is in the store already, whole and with its key."""
        for release in self._vault.releases.releases():
            artefact = plan.choice.artefact
            if release.digest == plan.digest and release.sealed_file(artefact).is_file():
                try:
                    self._vault.open_weights(release.directory, artefact).close()
                except DamagedContainerError as error:
                    log.warning("ota_artefact_damaged", model=plan.label, error=str(error))
                    return None
                except VaultError as error:
                    raise _vault_error(plan, error) from error
                return release
        return None

    def install(self, plan: Plan, progress: Callable[[int], None]) -> Stored:
        """Fetch, make and store the artefact of a plan.

        Args:
            plan: what is to be fetched.
            progress: told how many bytes of a file are there, now and then; what it raises ends the fetch.

        Raises:
            KeyAwaitedError, NoSpaceError, FetchError, StorageError: not now.
            TrustError, InstallError: not ever.
        """
        self._require_space(plan)
        directory = self._place_of(plan.offer)
        self._prepare(directory, plan)
        golden = 0
        for file in plan.golden:
            self._source.fetch(file, self._place_of_golden(plan.offer, file), progress)
            golden += file.size_bytes
        reason = ""
        if plan.patch is not None:
            try:
                release = self._from(plan, plan.patch, directory, progress)
                return Stored(release, golden + plan.patch.size_bytes, golden + plan.full.size_bytes, patched=True)
            except (PatchError, DamagedReleaseError) as error:
                reason = str(error)
                log.warning("ota_patch_failed", model=plan.label, patch=plan.patch.path, error=reason)
            self._require_budget(plan, reason)
        try:
            release = self._from(plan, plan.full, directory, progress)
        except PatchError as error:
            raise DamagedReleaseError(str(error)) from error
        fetched = golden + plan.full.size_bytes + (plan.patch.size_bytes if plan.patch is not None else 0)
        return Stored(release, fetched, golden + plan.full.size_bytes, patched=False, patch_failed=reason)

    def prove(self, plan: Plan, release: ReleaseDirectory, settings: Pipeline) -> Answer:
        """Run the golden inputs of a stored release in a child.

        Raises:
            CanaryError: it fails.
            KeyAwaitedError: its weights are not given out now.
        """
        artefact = plan.choice.artefact
        try:
            weights = self._vault.open_weights(release.directory, artefact)
        except VaultError as error:
            raise _vault_error(plan, error) from error
        with weights:
            manifest = release.manifest
            return canary.prove(
                release.directory, manifest, artefact, weights.fd, settings=settings, backend=plan.choice.backend.name
            )

    def forget(self, name: str, version: str) -> None:
        """Throw away what was fetched for a release."""
        remove_directory(self._directory / name / version)

    def forget_others(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Throw away what was fetched for releases that are not wanted any more, by name and version.

        Belongs to the thread that fetches. Where a gateway was killed in the middle of a fetch, and something else was
        wanted when it came back, half a release would lie there for ever.
        """
        kept = {self._directory / name / version for name, version in wanted}
        for directory in self._directory.glob("*/*"):
            if directory not in kept:
                log.info("ota_fetched_dropped", directory=str(directory))
                remove_directory(directory)

    def put_aside_damaged(self, name: str, version: str) -> str:
        """Take a release that came over the air out of the store if it is damaged; returns what is wrong, or "".

        Raises:
            VaultError: it cannot be looked at, or put aside, now.
        """
        directory = self._vault.releases.directory / name / version
        if not (directory / OVER_THE_AIR_FILE).exists():
            return ""
        damage = damage_of(directory)
        if damage:
            self._vault.put_aside(directory, damage)
        return damage

    def withholds(self, name: str, version: str) -> bool:
        """Tell whether a release is here and cannot be opened, because its content key is over or gone."""
        directory = self._vault.releases.directory / name / version
        try:
            return (directory / MANIFEST_FILE).exists() and self._vault.withholds(read_release(directory))
        except VaultError as error:
            log.debug("ota_key_not_looked_at", model=f"{name} {version}", error=str(error))
            return False

    def remove(self, name: str, version: str) -> None:
        """Remove a release from the store. Raises VaultError if the disk refuses."""
        self._vault.remove(name, version)

    # ---- inside ------------------------------------------------------------------------------------------

    def _place_of(self, offer: Offer) -> Path:
        """Return where what is fetched for a release lies until it is stored."""
        return self._directory / offer.name / offer.version

    def _place_of_golden(self, offer: Offer, file: OfferedFile) -> Path:
        return self._place_of(offer) / file.path.rpartition("/")[2]

    def _place_of_container(self, offer: Offer, file: OfferedFile) -> Path:
        return self._place_of(offer) / "weights" / file.path.rpartition("/")[2]

    def _lacking(self, offer: Offer, container: OfferedFile) -> int:
        return self._source.lacking(container, self._place_of_container(offer, container))

    def _base(self, file: OfferedFile, artefact: Artefact) -> Base | None:
        """Return what a patch is to be applied to, if the file is a patch for the artefact and that is here."""
        custom = _custom(file, "patch", PatchFile)
        if custom is None or (custom.target, custom.sha256) != (artefact.target, artefact.sha256):
            return None
        for release in self._vault.releases.releases():
            for each in release.manifest.artefacts:
                if each.sha256 == custom.base_sha256 and release.sealed_file(each).is_file():
                    return Base(release.directory, each)
        return None

    def _prepare(self, directory: Path, plan: Plan) -> None:
        try:
            (directory / "weights").mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(directory / MANIFEST_FILE, plan.offer.manifest_bytes)
        except (OSError, VaultError) as error:
            raise StorageError(f"{directory} cannot be used: {error}") from error

    def _from(
        self, plan: Plan, file: OfferedFile, directory: Path, progress: Callable[[int], None]
    ) -> ReleaseDirectory:
        """Fetch one container, make the artefact of it and store that."""
        container = self._place_of_container(plan.offer, file)
        self._source.fetch(file, container, progress)
        artefact = plan.choice.artefact
        try:
            with self._opened(plan, container) as packed, self._plaintext(plan, file, packed) as plain:
                release = self._vault.install(directory, artefact, plain)
        except DamagedContainerError as error:
            container.unlink(missing_ok=True)
            raise DamagedReleaseError(f"{plan.label}: {error}") from error
        except PatchError:
            container.unlink(missing_ok=True)
            raise
        except VaultError as error:
            raise _vault_error(plan, error) from error
        remove_directory(directory)
        return release

    def _opened(self, plan: Plan, container: Path) -> SealedWeights:
        return self._vault.open_container(container, release=plan.digest, label=plan.label)

    @contextlib.contextmanager
    def _plaintext(self, plan: Plan, file: OfferedFile, packed: SealedWeights) -> Iterator[memoryview]:
        """Yield the plaintext of the artefact."""
        artefact = plan.choice.artefact
        patch = _custom(file, "patch", PatchFile)
        whole = _custom(file, "artefact", ArtefactFile)
        if patch is None and whole is not None and not whole.packed:
            with packed.view as view:
                yield view
            return
        method = patch.method if patch is not None else whole.packed if whole is not None else ""
        recipe = Recipe(f"{plan.label}, {artefact.file}", method, artefact.size_bytes, artefact.sha256)
        if patch is not None and plan.base is not None:
            with self._vault.open_weights(plan.base.directory, plan.base.artefact) as base:
                memory = make(recipe, packed.fd, base.fd)
        elif method == ZSTD:
            memory = make(recipe, packed.fd)
        else:
            raise DamagedReleaseError(f"{plan.label}: this program cannot unpack {method!r}; update the gateway")
        try:
            with memory.map() as mapping, memoryview(mapping) as view:
                yield view
        finally:
            memory.close()

    def _require_space(self, plan: Plan) -> None:
        directory = self._vault.releases.directory
        there = next(each for each in (directory, *directory.parents) if each.exists())
        needed = plan.full.size_bytes + plan.choice.artefact.size_bytes + _SPARE_BYTES
        free = shutil.disk_usage(there).free
        if free < needed:
            raise NoSpaceError(f"{plan.label} needs {needed} bytes on the disk of {directory}, {free} are free")

    def _require_budget(self, plan: Plan, reason: str) -> None:
        what = f"{plan.label}: the patch cannot be used ({reason}); the full file needs"
        self.require_budget(self._lacking(plan.offer, plan.full), what)


def _fits(file: OfferedFile, artefact: Artefact) -> bool:
    custom = _custom(file, "artefact", ArtefactFile)
    return custom is not None and (custom.target, custom.sha256) == (artefact.target, artefact.sha256)


def _custom(file: OfferedFile, kind: str, wanted: type[T]) -> T | None:
    """Return what the repository says about a file, None if it is of another kind or not understood."""
    custom: Any = dict(file.custom)
    if custom.get("kind") != kind:
        return None
    try:
        return msgspec.convert(custom, wanted)
    except msgspec.ValidationError as error:
        log.warning("ota_target_not_understood", path=file.path, error=str(error))
        return None


def _vault_error(plan: Plan, error: VaultError) -> OtaError:
    if isinstance(error, _WITHHELD):
        return KeyAwaitedError(f"{plan.label} waits for its key: {error}")
    return StorageError(f"{plan.label}: {error}")
