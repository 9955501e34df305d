"""The vault as the running gateway uses it: opens weights for the pipelines, and seals first what lies in clear."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from gateway.config import Vault as VaultSettings
from gateway.errors import ModelError, WeightsWithheldError
from gateway.inference.backend import Weights
from gateway.inference.bundle import Release
from gateway.report import KeyReport, VaultReport
from gateway.vault.damage import damage_of
from gateway.vault.errors import (
    DamagedContainerError,
    KeyMissingError,
    KeyStoreError,
    LeaseEndedError,
    VaultConfigError,
    VaultError,
    WrongKeyError,
)
from gateway.vault.files import remove_directory
from gateway.vault.keyring import GrantedKey
from gateway.vault.store import SEALED_SUFFIX, read_release
from gateway.vault.tpm.library import tpm_library
from gateway.vault.vault import Vault, VaultStatus
from gateway.wire.identity import Grant
from gateway.wire.manifest import OVER_THE_AIR_FILE, Artefact
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_WITHHELD: Final = (KeyMissingError, KeyStoreError, LeaseEndedError, VaultConfigError, WrongKeyError)
"""Something about the key, not about the release: it is asked again, and no other artefact would open."""


Severity = Literal["info", "warning", "error"]

Tell = Callable[[str, Severity, str], None]
"""Takes the code, the severity and the words of something that the cloud should hear of."""


def open_vault(settings: VaultSettings, state_directory: Path, *, now_ns: Callable[[], int] = time.time_ns) -> Vault:
    """Open the vault that the configuration describes; the TPM is not asked yet. `now_ns` measures leases, UTC.

    Raises:
        VaultConfigError: it cannot be used as configured: something is missing that only a person can bring.
    """
    vault = Vault.open(settings, state_directory, now_ns=now_ns)
    if settings.level == "tpm":
        tpm_library()
    return vault


@dataclass(frozen=True, slots=True)
class VaultLook:
    """What was found when the vault was looked at."""

    status: VaultStatus | None  # None: its directory cannot be used
    problem: str  # why it is not initialised; "" when it is


class SealedModels:
    """Weights for the pipelines, from the sealed store alone. Its methods block and may be called from any thread."""

    def __init__(self, vault: Vault, tell: Tell | None = None) -> None:
        """Take the vault, which is initialised when it is needed for the first time, and who hears of damage."""
        self._vault = vault
        self._tell = tell
        self._lock = threading.Lock()
        self._prepared = False
        self._unusable: dict[str, str] = {}  # grants of the last attestation that were not taken, and why

    @property
    def directory(self) -> Path:
        """Where sealed releases lie."""
        return self._vault.releases.directory

    def prepare(self) -> None:
        """Initialise the vault where that was not done; at level `tpm` only with an approval to begin the counter.

        Raises:
            VaultError: it cannot be; says what a person must do.
        """
        with self._lock:
            if not self._prepared:
                self._vault.initialise()
                self._prepared = True

    def open(self, release: Release, artefact: Artefact) -> Weights:
        """Open an artefact (`gateway.inference.bundle.OpenWeights`); a release that lies in clear is sealed first.

        Sealing is done once, also when two pipelines want the same release at the same time, and a power cut in
        the middle of it leaves nothing that would pass for a sealed release. A sealed release that is damaged is sealed
        anew from the same release in clear, where that lies beside; one that came over the air is put aside, so that it
        is fetched again.

        Raises:
            WeightsWithheldError: the key is not given out now; the reason may pass.
            ModelError: the release is not what its manifest says.
        """
        try:
            self.prepare()
            directory = self._sealed(release, artefact)
            try:
                return self._whole(directory, artefact)
            except DamagedContainerError as error:
                return self._mended(release, directory, artefact, error)
            except (KeyMissingError, WrongKeyError):
                if release.origin is None or read_release(release.origin).is_sealed:
                    raise
                # As after `gateway vault init --anew`: what was sealed here is lost, and lies in clear elsewhere.
                return self._vault.open_weights(self._sealed_again(directory, release.origin), artefact)
        except _WITHHELD as error:
            raise WeightsWithheldError(f"model {release.label} waits for its key: {error}") from error
        except VaultError as error:
            raise ModelError(f"model {release.label}: {error}") from error

    def accept(self, grants: Sequence[Grant], bridge_now_ns: int) -> None:
        """Take content keys that the bridge has granted; bridge_now_ns: its clock, UTC.

        Releases that this device has sealed itself keep the key they are sealed with.

        Raises:
            KeyStoreError: the key store does not answer, or refuses.
        """
        if not grants:
            return
        labels = {grant.digest: grant.release for grant in grants}
        refused = self._vault.accept_grants(
            [GrantedKey(each.digest, each.release, each.wrapped_key, each.lease_until_ns) for each in grants],
            bridge_now_ns=bridge_now_ns,
        )
        for release, error in refused.items():  # one that cannot be used must not keep the others out
            if self._unusable.get(release) != str(error):
                log.warning("grant_not_usable", release=release, label=labels[release], error=str(error))
        for release in self._unusable.keys() - refused.keys():
            log.info("grant_usable_again", release=release, label=labels.get(release, ""))
        self._unusable = {release: str(error) for release, error in refused.items()}

    def look(self) -> VaultLook:
        """Ask the vault how it is; at level `tpm` the TPM is asked, too. What is wrong is part of the answer."""
        problem = ""
        try:
            self.prepare()
        except VaultError as error:
            problem = str(error)
        try:
            return VaultLook(self._vault.status(), problem)
        except VaultError as error:
            return VaultLook(None, problem or str(error))

    def _whole(self, directory: Path, artefact: Artefact) -> Weights:
        """Open an artefact of a release that shows no damage. Raises DamagedContainerError if it does."""
        if damage := damage_of(directory):
            raise DamagedContainerError(f"{damage}; put the release there again: `gateway vault import`")
        return self._vault.open_weights(directory, artefact)

    def _mended(self, release: Release, directory: Path, artefact: Artefact, damage: DamagedContainerError) -> Weights:
        """Bring a damaged release back from its original; what came over the air is fetched again instead."""
        with self._lock:
            with contextlib.suppress(DamagedContainerError):
                return self._whole(directory, artefact)  # another pipeline has mended it meanwhile
            if release.origin is not None:
                try:
                    stored = self._vault.import_release(release.origin, damage=str(damage))
                except _WITHHELD:
                    raise
                except VaultError as error:
                    raise VaultError(f"{damage}; nor can {release.origin} take its place: {error}") from error
                self._told_mended(release)
                return self._vault.open_weights(stored.directory, artefact)
            if (directory / OVER_THE_AIR_FILE).exists():
                self._vault.put_aside(directory, str(damage))
                self._say("release_damaged", f"{release.label} was damaged on this device and must be fetched again")
                raise VaultError(f"{damage}, or assign it again: it is fetched anew then") from damage
            raise damage

    def _told_mended(self, release: Release) -> None:
        log.warning("sealed_release_mended", model=release.label, origin=str(release.origin or release.directory))
        self._say("release_mended", f"{release.label} was damaged on this device and is sealed anew from its original")

    def _say(self, code: str, words: str) -> None:
        if self._tell is not None:
            self._tell(code, "warning", words)

    def _sealed_again(self, directory: Path, origin: Path) -> Path:
        with self._lock:
            log.warning("release_sealed_again", directory=str(directory), origin=str(origin), reason="its key is lost")
            remove_directory(directory)
            return self._vault.import_release(origin).directory

    def _sealed(self, release: Release, artefact: Artefact) -> Path:
        came_sealed = read_release(release.directory).is_sealed
        if not release.directory.is_relative_to(self.directory):
            there = self.directory / release.manifest.name / release.manifest.version
            damage = damage_of(there) if there.exists() else ""
            try:
                stored = self._vault.import_release(release.directory).directory
                if damage:
                    self._told_mended(release)
                return stored
            except VaultError:
                if not came_sealed:
                    release.verify(artefact)  # says it better, if it is the file
                raise
        # A release that came over the air has those of its artefacts here that this device runs.
        container = release.directory / (artefact.file + SEALED_SUFFIX)
        if not container.is_file() and release.origin is None:
            if (release.directory / artefact.file).is_file():
                raise VaultError(
                    f"{release.directory} lies in clear among the sealed releases: move it elsewhere, and name that "
                    "place under models.directories"
                )
            if not damage_of(release.directory):
                raise VaultError(
                    f"{container} is not on this device: it came over the air, and only what ran here then was fetched"
                )
        return release.directory


class KeyWatch:
    """Which pipelines wait for the key of their model. Each case is told when it begins and when it is over."""

    def __init__(self, tell: Tell) -> None:
        """Take who is told; called on the thread of the pipeline."""
        self._tell = tell
        self._lock = threading.Lock()
        self._waiting: dict[str, str] = {}
        self._refusals = 0

    @property
    def waiting(self) -> dict[str, str]:
        """The reason, by pipeline."""
        with self._lock:
            return dict(self._waiting)

    @property
    def refusals(self) -> int:
        """How often a key was not given out."""
        with self._lock:
            return self._refusals

    def withheld(self, pipeline: str, reason: str) -> None:
        """Note that a pipeline cannot load its model; told again only when the reason is another one."""
        with self._lock:
            before = self._waiting.get(pipeline)
            self._waiting[pipeline] = reason
            self._refusals += 1
        if before != reason:
            log.error("weights_withheld", pipeline=pipeline, reason=reason)
        if before is None:
            self._tell("weights_withheld", "error", f"pipeline {pipeline}: {reason}")

    def given(self, pipeline: str) -> None:
        """Note that a pipeline has its model."""
        with self._lock:
            before = self._waiting.pop(pipeline, None)
        if before is not None:
            log.info("weights_given", pipeline=pipeline)
            self._tell("weights_given", "info", f"pipeline {pipeline} has the key of its model again")


class VaultView:
    """The last look at the vault, for the event loop, which must not wait for a TPM."""

    def __init__(
        self, settings: VaultSettings, watch: KeyWatch, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin without having looked."""
        self._settings = settings
        self._watch = watch
        self._monotonic = monotonic
        self._look = VaultLook(None, "")
        self._looked_at = 0.0

    def take(self, look: VaultLook) -> None:
        """Keep what was found."""
        self._look = look
        self._looked_at = self._monotonic()

    def report(self) -> VaultReport:
        """Say how the vault is."""
        status, problem = self._look.status, self._look.problem
        waiting, refusals = self._watch.waiting, self._watch.refusals
        problems = [problem] if problem else []
        if status is None:
            return VaultReport(level=self._settings.level, problems=problems, waiting=waiting, refusals=refusals)
        passed = self._monotonic() - self._looked_at
        keys = [
            KeyReport(
                label=key.label,
                release=key.release,
                lease_until=None if key.lease_until_ns is None else rfc3339(key.lease_until_ns),
                remaining_seconds=None
                if key.remaining_seconds is None
                else round(max(0.0, key.remaining_seconds - passed), 1),
            )
            for key in status.keys
        ]
        return VaultReport(
            level=status.store.level,
            initialised=status.initialised,
            ready=status.initialised and status.store.ready,
            problems=problems + [each for each in status.problems if status.initialised or not problem],
            warnings=[*status.store.warnings],
            releases=[*status.releases],
            keys=keys,
            waiting=waiting,
            refusals=refusals,
        )
