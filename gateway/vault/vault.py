"""The vault of one device: the key store, the keys and the sealed releases together.

    <state>/vault/    keys (`keyring`), the floor of the clock, what belongs to the key store
    <state>/models/   sealed releases (`store`)

Nothing secret is kept in memory between calls: each opening of weights asks the key store anew, so it is refused as
soon as the machine's state is not an approved one any more. What was opened before stays usable. Models that are opened
at the same time, as at a start, share one unsealing.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from gateway.config import Vault as VaultSettings
from gateway.statefiles import is_passing
from gateway.vault.aead import KEY_BYTES, this_machines_algorithm
from gateway.vault.approvals import read_approvals, read_key_file
from gateway.vault.damage import damage_of, names_of
from gateway.vault.errors import DamagedContainerError, KeyMissingError, VaultConfigError, VaultError, WrongKeyError
from gateway.vault.files import locked, write_durably
from gateway.vault.hardening import Hardening, hardening
from gateway.vault.keyring import ContentKey, GrantedKey, Keyring, WrappedKey
from gateway.vault.keystore import KeyStore, KeyStoreStatus
from gateway.vault.lease import (
    FLOOR_STEP_NS,
    NANOSECONDS_A_DAY,
    effective_now_ns,
    remaining_seconds,
    require_lease,
)
from gateway.vault.rounds import Rounds
from gateway.vault.software import APPLIANCE_MARKER, SoftwareKeyStore
from gateway.vault.store import ReleaseDirectory, SealedStore, read_release
from gateway.vault.tpm.connection import Connection
from gateway.vault.tpm.identity import TpmIdentity
from gateway.vault.tpm.keystore import TpmKeyStore
from gateway.vault.weights import Room, SealedWeights, header_of, open_own, open_sealed, read_ahead
from gateway.wire.manifest import OVER_THE_AIR_FILE, Artefact

log = structlog.get_logger()

_FLOOR: Final = "clock.json"
KERNELS_TPM: Final = re.compile(r"device:/dev/tpm(rm)?[0-9]{1,3}")
"""What root on an appliance reaches the TPM by; see `open_connection`."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A content key on this device."""

    release: str
    label: str
    lease_until_ns: int | None
    remaining_seconds: float | None  # None: without end


@dataclass(frozen=True, slots=True)
class VaultStatus:
    """How the vault is."""

    initialised: bool
    generation: int | None
    store: KeyStoreStatus
    keys: tuple[KeyStatus, ...]
    releases: tuple[str, ...]  # sealed ones in the store, `name version`
    hardening: Hardening  # of the process that asks
    problems: tuple[str, ...]


class Vault:
    """Opens and changes the vault. Calls block and may be made from any thread or program; a lock keeps them apart."""

    def __init__(
        self,
        store: KeyStore,
        state_directory: Path,
        *,
        lease_days: float,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take parts; `open` makes them from the configuration.

        Args:
            store: seals and unseals.
            state_directory: the gateway's.
            lease_days: how long a grant lasts that does not say.
            now_ns: the wall clock, UTC.
        """
        self.store = store
        self.releases = SealedStore(state_directory / "models")
        self._directory = state_directory / "vault"
        self._keyring = Keyring(self._directory, store)
        self._lease_ns = int(lease_days * NANOSECONDS_A_DAY)
        self._now_ns = now_ns
        self._unwritten_floor_ns = 0  # of the clock: what the disk did not take
        self._openings: Rounds[tuple[str, str], ContentKey] = Rounds(self._opened_keys)

    @classmethod
    def open(
        cls,
        settings: VaultSettings,
        state_directory: Path,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        appliance_marker: Path = APPLIANCE_MARKER,
    ) -> Self:
        """Open the vault that a configuration describes; the TPM is not touched yet.

        Raises:
            VaultConfigError: it cannot be used as configured.
        """
        store = open_key_store(settings, state_directory, appliance_marker=appliance_marker)
        return cls(store, state_directory, lease_days=settings.lease_days, now_ns=now_ns)

    # ---- the vault itself ------------------------------------------------------------------------

    def initialise(self, *, anew: bool = False) -> None:
        """Prepare the key store and seal a new vault key; does nothing where there is one.

        What an import that was killed has left is removed.

        Args:
            anew: give up the vault that is there. Its content keys are lost, until grants bring them again.

        Raises:
            KeyStoreError: the key store cannot be prepared.
        """
        with self._locked(exclusive=True):
            self.releases.remove_leftovers()
            if anew:
                self._keyring.forget()
                self.store.forget()
            if self._keyring.generation is None:
                self.store.provision()
                self._keyring.create()
                log.info("vault_initialised", security=self.store.level)
            elif isinstance(self.store, TpmKeyStore):
                self.store.pin_again()

    def check(self) -> None:
        """Unseal everything and throw it away.

        Raises:
            PolicyRefusedError: the machine is not in an approved state; says in what it differs.
            VaultError: something else is wrong.
        """
        with self._locked():
            self._keyring.check()

    def rotate(self) -> None:
        """Change the vault key and the recipient key. Grants that were made before and not taken yet come too late."""
        with self._locked(exclusive=True):
            self._keyring.replace(vault_key=secrets.token_bytes(KEY_BYTES))
            log.info("vault_rotated", security=self.store.level, generation=self._keyring.generation)

    def reseal(self) -> None:
        """Seal the same keys anew, e.g. for another policy key. The present state must be an approved one."""
        with self._locked(exclusive=True):
            self._keyring.replace()
            log.info("vault_resealed", security=self.store.level, generation=self._keyring.generation)

    def advance_counter(self) -> int:
        """Make older images worthless; see `TpmKeyStore.advance`. Call it when a new image has proved itself.

        Raises:
            VaultError: there is no counter, or no approval for the step.
        """
        if not isinstance(self.store, TpmKeyStore):
            raise VaultError("level software has no counter")
        with self._locked(exclusive=True):
            return self.store.advance()

    # ---- the floor of updates --------------------------------------------------------------------

    @property
    def floor_counter(self) -> TpmKeyStore | None:
        """What counts for the floor of updates; None at level software, where nothing can."""
        return self.store if isinstance(self.store, TpmKeyStore) else None

    def floor_key(self) -> bytes:
        """Return the key that the floor of updates is authenticated with: 32 bytes, given out with the vault key.

        Raises:
            PolicyRefusedError: the machine is not in an approved state.
            KeyStoreUnavailableError: the TPM does not answer in time.
            WrongKeyError: it was changed, or is damaged.
            VaultError: there is no vault yet, or it cannot be read.
        """
        with self._locked(exclusive=True):  # a vault from before there was such a key gets one
            return self._keyring.floor_key()

    def new_floor_key(self) -> bytes:
        """Draw another key for the floor of updates in place of the present one. Raises VaultError."""
        with self._locked(exclusive=True):
            return self._keyring.new_floor_key()

    def status(self) -> VaultStatus:
        """Tell how the vault is. A TPM that does not answer is part of the answer."""
        problems: list[str] = []
        keys: list[KeyStatus] = []
        generation: int | None = None
        with self._locked():
            try:
                generation = self._keyring.generation
                now_ns = effective_now_ns(self._now_ns(), self._floor_ns())
                if generation is not None:
                    problems += self._keyring.missing()
                    keys = [
                        KeyStatus(
                            key.release, key.label, key.lease_until_ns, remaining_seconds(key.lease_until_ns, now_ns)
                        )
                        for key in self._keyring.wrapped_keys()
                    ]
            except VaultError as error:
                problems.append(str(error))
            problems += [
                f"the lease for {key.label or key.release[:12]} has ended" for key in keys if key.remaining_seconds == 0
            ]
            store = self.store.status()
        if generation is None and not problems:
            problems.append("this device has no vault yet: run `gateway vault init`")
        problems += [reason for reason in store.reasons if reason not in problems]
        return VaultStatus(
            initialised=generation is not None,
            generation=generation,
            store=store,
            keys=tuple(keys),
            releases=tuple(release.label for release in self.releases.releases()),
            hardening=hardening(),
            problems=tuple(problems),
        )

    # ---- keys ------------------------------------------------------------------------------------

    def recipient(self) -> bytes:
        """Return the X25519 public key (32 bytes) that the bridge addresses content keys to.

        Raises:
            KeyStoreError: the vault is not initialised.
        """
        with self._locked():
            return self._keyring.recipient()

    def accept_grant(
        self,
        release: str,
        wrapped: bytes,
        lease_until_ns: int | None = None,
        *,
        label: str = "",
        bridge_now_ns: int | None = None,
    ) -> None:
        """Take a content key from the bridge, wrap it under the vault key and keep it.

        Args:
            release: SHA-256 of the release's manifest.json, hex.
            wrapped: a libsodium sealed box to `recipient`, 80 bytes.
            lease_until_ns: until when the key may be used, UTC; None: for the configured number of days.
            label: `name version`, for people.
            bridge_now_ns: the bridge's clock, from an authenticated answer. It becomes the floor of this device's,
                also when that had run ahead.

        Raises:
            WrongKeyError: the grant is not addressed to this device.
            KeyStoreError: the key store does not answer, or refuses.
        """
        if lease_until_ns is None:
            now_ns = bridge_now_ns or effective_now_ns(self._now_ns(), self._floor_ns())
            lease_until_ns = now_ns + self._lease_ns
        grant = GrantedKey(release, label, wrapped, lease_until_ns)
        for error in self.accept_grants([grant], bridge_now_ns=bridge_now_ns).values():
            raise error

    def accept_grants(self, grants: Sequence[GrantedKey], *, bridge_now_ns: int | None = None) -> dict[str, VaultError]:
        """Take content keys from the bridge, as one attestation brings them: the key store is asked once for all.

        A release that this device has sealed itself keeps the key that it is sealed with.

        Args:
            grants: one for each release.
            bridge_now_ns: as for `accept_grant`.

        Returns:
            By release, why a grant was not taken; the others were.

        Raises:
            KeyStoreError: the key store does not answer, or refuses.
        """
        with self._locked(exclusive=True):
            if bridge_now_ns is not None:
                self._keep_floor(bridge_now_ns)
            refused = self._keyring.accept(grants, self._time_ns() if bridge_now_ns is None else bridge_now_ns)
        log.info("content_keys_accepted", releases=len(grants) - len(refused), refused=len(refused))
        return refused

    def withholds(self, release: ReleaseDirectory) -> bool:
        """Tell whether the content key of a release is over, or gone where only the bridge can bring it again.

        The key store is not asked: while that gives out nothing, it does so for every release.

        Raises:
            VaultError: the vault cannot be read now.
        """
        with self._locked():
            try:
                key = self._keyring.find(release.digest)
            except KeyMissingError:
                return (release.directory / OVER_THE_AIR_FILE).exists()
            now_ns = effective_now_ns(self._now_ns(), self._floor_ns())
            return remaining_seconds(key.lease_until_ns, now_ns) == 0

    # ---- releases --------------------------------------------------------------------------------

    def import_release(self, directory: Path, *, damage: str = "", replace: bool = False) -> ReleaseDirectory:
        """Put a release into the store: a plain one is sealed, a sealed one is taken as it is.

        A plain release gets a content key of its own, without a lease; the plain files stay where they are. What lies
        in the store under this version and is damaged is put aside, once the new one is whole.

        Args:
            directory: of the release.
            damage: what is wrong with the one in the store, where that shows only when weights are opened.
            replace: another release under this version is put aside, too: a person has put the wrong one there.

        Raises:
            VaultError: it is not what its manifest says; or it is sealed, and its key is not on this device; or what
                lies in the store is another release, whole or damaged.
        """
        release = read_release(directory)
        with self._locked(exclusive=True):
            damage = self._damage(release, damage, replace=replace)
            if release.is_sealed:
                key = self._keyring.open(self._keyring.find(release.digest))
                for artefact in release.manifest.artefacts:
                    open_sealed(release.sealed_file(artefact), key.secret, sha256=artefact.sha256).close()
                stored = self.releases.take(release, damage=damage)
            else:
                stored = self.releases.put(release, self._own_key(release), this_machines_algorithm(), damage=damage)
        log.info("release_stored", model=release.label, directory=str(stored.directory))
        return stored

    def open_container(self, container: Path, *, release: str, label: str) -> SealedWeights:
        """Decrypt a container as it came from a registry: a whole artefact, a compressed one or a patch.

        Args:
            container: the file.
            release: SHA-256 of the manifest of the release that it must belong to.
            label: `name version` of that release, for messages.

        Raises:
            KeyMissingError, LeaseEndedError, PolicyRefusedError, KeyStoreUnavailableError: as `open_weights`.
            DamagedContainerError: it is not authentic, or belongs to another release.
        """
        if header_of(container).release != release:
            raise DamagedContainerError(f"{container} belongs to another release than {label}")
        key = self._openings.ask((release, label))
        return open_sealed(container, key.secret)

    def install(self, directory: Path, artefact: Artefact, plain: memoryview) -> ReleaseDirectory:
        """Put one artefact of a release into the store, sealed with the content key that was granted for the release.

        At every moment the store holds the release with the artefact, or without it; the others may come later.

        Args:
            directory: holds manifest.json as it was signed, and the golden inputs.
            artefact: of that manifest.
            plain: its bytes; they must have the digest that the manifest names.

        Raises:
            KeyMissingError, LeaseEndedError, PolicyRefusedError, KeyStoreUnavailableError: as `open_weights`.
            VaultError: the bytes are others, this version is there with another manifest, or the disk refuses.
        """
        release = read_release(directory)
        key = self._openings.ask((release.digest, release.label))
        with self._locked(exclusive=True):
            if damage := self._damage(release):
                self.releases.put_aside(release.manifest.name, release.manifest.version, damage)
            stored = self.releases.add(release, artefact, plain, key.secret, this_machines_algorithm())
        log.info("artefact_stored", model=release.label, target=artefact.target, directory=str(stored.directory))
        return stored

    def _damage(self, release: ReleaseDirectory, known: str = "", *, replace: bool = False) -> str:
        """Say what is wrong with the copy of a release in the store, "" if there is none, or nothing is.

        Args:
            release: that is to take its place.
            known: damage that shows only when weights are opened.
            replace: another release is damage, too.

        Raises:
            VaultError: it is the copy of another release.
        """
        target = self.releases.place_of(release)
        if not target.exists() or target.samefile(release.directory):
            return ""
        damage = damage_of(target) or known
        if not damage and read_release(target).digest != release.digest:
            if not replace:  # known before a key is drawn for what will not come
                raise VaultError(
                    f"{target} holds another {release.label}: a version is never changed, choose a new one; if the one "
                    "there is a mistake, `gateway vault import --replace` puts it aside"
                )
            damage = "another release of this version was put in its place by hand"
        names = names_of(target) if damage and not replace else frozenset()
        if names and release.digest not in names:
            raise VaultError(
                f"{target} is damaged ({damage}), and {release.directory} is another {release.label}: import the one "
                "that it was sealed from, or remove it"
            )
        return damage

    def put_aside(self, directory: Path, damage: str) -> Path:
        """Take a damaged release out of the store, and keep it for a look; returns where.

        Raises:
            VaultError: the disk refuses.
        """
        with self._locked(exclusive=True):
            return self.releases.put_aside(directory.parent.name, directory.name, damage)

    def remove(self, name: str, version: str) -> None:
        """Remove a release from the store; what a program has opened stays usable."""
        with self._locked(exclusive=True):
            self.releases.remove(name, version)

    def open_weights(self, directory: Path, artefact: Artefact) -> SealedWeights:
        """Decrypt an artefact of a sealed release into memory.

        The digest of the plaintext is compared where others have the content key too. Where the release was sealed on
        this device, that was done then, and its key never left the device: what is authentic now is what was sealed.

        Args:
            directory: of the release.
            artefact: from its verified manifest; the plaintext must have this digest.

        Raises:
            KeyMissingError: no key was granted for this release.
            LeaseEndedError: the bridge must be heard again.
            PolicyRefusedError: the machine is not in an approved state.
            KeyStoreUnavailableError: the TPM does not answer in time.
            DamagedContainerError: the file is not what it should be.
        """
        release = read_release(directory)
        file = release.sealed_file(artefact)
        header = header_of(file)
        if header.release != release.digest:
            raise DamagedContainerError(f"{file} belongs to another release than the manifest beside it")
        if header.size_bytes != artefact.size_bytes:  # nobody's header makes this process ask for a terabyte
            raise DamagedContainerError(
                f"{file} says that it holds {header.size_bytes} bytes, the manifest says {artefact.size_bytes}"
            )
        read_ahead(file)
        with Room(file) as room:
            key = self._openings.ask((release.digest, release.label))
            opened = open_own if key.is_own else open_sealed
            return opened(file, key.secret, sha256=artefact.sha256, room=room)

    def _opened_keys(self, releases: frozenset[tuple[str, str]]) -> dict[tuple[str, str], ContentKey | VaultError]:
        """Open the content keys of some releases (digest, label); an error stands in the place of a key."""
        answers: dict[tuple[str, str], ContentKey | VaultError] = {}
        granted: dict[tuple[str, str], WrappedKey] = {}
        with self._locked(exclusive=True):  # the clock's floor may be written
            for release in sorted(releases):
                digest, label = release
                try:
                    wrapped = self._keyring.find(digest)
                    require_lease(label, wrapped.lease_until_ns, self._time_ns())
                    granted[release] = wrapped
                except VaultError as error:
                    answers[release] = error
            if granted:
                answers.update(zip(granted, self._keyring.open_all(list(granted.values())), strict=True))
        return answers

    def _own_key(self, release: ReleaseDirectory) -> bytes:
        """Return the content key of a release, drawn and kept if there is none. Durable before anything is sealed."""
        try:
            return self._keyring.open(self._keyring.find(release.digest)).secret
        except (KeyMissingError, WrongKeyError) as error:
            # What a damaged one has sealed is lost with it, and is sealed anew from the plain release.
            if isinstance(error, WrongKeyError):
                log.warning("content_key_drawn_again", release=release.digest, label=release.label, reason=str(error))
            secret = secrets.token_bytes(KEY_BYTES)
            self._keyring.put(ContentKey(release.digest, release.label, None, secret))
            return secret

    # ---- the clock -------------------------------------------------------------------------------

    def _time_ns(self) -> int:
        """Return the time that counts for leases, and remember it now and then."""
        written_ns = self._written_floor_ns()
        now_ns = effective_now_ns(self._now_ns(), max(written_ns or 0, self._unwritten_floor_ns))
        if written_ns is not None and now_ns - written_ns >= FLOOR_STEP_NS:
            self._keep_floor(now_ns)
        return now_ns

    def _floor_ns(self) -> int:
        return max(self._written_floor_ns() or 0, self._unwritten_floor_ns)

    def _written_floor_ns(self) -> int | None:
        """Return what is on the disk, 0 when there is nothing of use; None: it cannot be read now."""
        try:
            return msgspec.json.decode((self._directory / _FLOOR).read_bytes(), type=int)
        except FileNotFoundError:
            return 0
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            # Without a floor the wall clock alone counts: worse than with one, better than no weights.
            log.warning("vault_clock_floor_unreadable", file=str(self._directory / _FLOOR), error=str(error))
            return None if is_passing(error) else 0

    def _keep_floor(self, now_ns: int) -> None:
        """Write the floor of the clock down; a disk that takes nothing keeps no weights from a model."""
        try:
            write_durably(self._directory / _FLOOR, msgspec.json.encode(now_ns))
        except VaultError as error:
            if not self._unwritten_floor_ns:
                log.warning("vault_clock_floor_not_written", error=str(error), consequence="remembered until a restart")
            self._unwritten_floor_ns = now_ns
            return
        if self._unwritten_floor_ns:
            log.info("vault_clock_floor_written_again")
        self._unwritten_floor_ns = 0

    def _locked(self, *, exclusive: bool = False) -> AbstractContextManager[None]:
        return locked(self._directory / "lock", exclusive=exclusive)


def has_content_key(state_directory: Path, release: str) -> bool:
    """Tell whether the content key of a release is on this device, its lease over or not; no key store is opened.

    Args:
        state_directory: the gateway's.
        release: SHA-256 of its manifest.json, hex.

    Raises:
        VaultError: the vault cannot be read now.
    """
    directory = state_directory / "vault"
    keyring = Keyring(directory, None)  # type: ignore[arg-type]  # nothing is sealed or unsealed
    with locked(directory / "lock", exclusive=False):
        if keyring.generation is None:
            return False
        try:
            keyring.find(release)
        except KeyMissingError:
            return False
        return True


def open_key_store(
    settings: VaultSettings, state_directory: Path, *, appliance_marker: Path = APPLIANCE_MARKER
) -> KeyStore:
    """Return the key store of the configured level.

    Raises:
        VaultConfigError: it cannot be used as configured; there is no falling back to a lower level.
    """
    directory = state_directory / "vault"
    if settings.level == "software":
        return SoftwareKeyStore(directory, appliance_marker=appliance_marker)
    if settings.policy_key_file is None:
        raise VaultConfigError(
            "vault.level tpm needs vault.policy_key_file: the public key whose signed policies say in which states of "
            "this machine the key is given out; `gateway vault policy keygen` makes one"
        )
    key = read_key_file(settings.policy_key_file)
    policies = settings.policy_directory
    return TpmKeyStore(
        open_connection(settings), directory, key, lambda: read_approvals(policies, key), pcrs=settings.pcrs
    )


def open_connection(
    settings: VaultSettings,
    *,
    appliance_marker: Path = APPLIANCE_MARKER,
    user_id: Callable[[], int] = os.geteuid,
) -> Connection:
    """Return the connection to the configured TPM; nothing is opened yet.

    Raises:
        VaultConfigError: root on an appliance is to reach the TPM by something else than a device of the kernel. The
            gateway's user may write the configuration, and a TCTI may name a program or a library that would be run.
    """
    if user_id() == 0 and not KERNELS_TPM.fullmatch(settings.tcti) and appliance_marker.exists():
        raise VaultConfigError(
            f"vault.tcti {settings.tcti!r} is not used by root on an appliance; name the kernel's TPM, as in "
            "device:/dev/tpmrm0, or run this as the user sluice"
        )
    return Connection(settings.tcti, seconds=settings.timeout_seconds)


def tpm_identity(settings: VaultSettings) -> TpmIdentity:
    """Return what the configured TPM proves to the bridge.

    Raises:
        VaultConfigError: the level is software: there is nothing that could sign a quote.
    """
    if settings.level != "tpm":
        raise VaultConfigError(
            "vault.level software has no TPM: it cannot quote, and a bridge must allow it explicitly"
        )
    return TpmIdentity(open_connection(settings))
