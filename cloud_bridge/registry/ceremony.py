"""What people do with keys: begin a repository, change a key, sign where a key is kept offline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, Root, Targets

from cloud_bridge.identity.database import Clock
from cloud_bridge.identity.files import PUBLIC, read_plain, write_file
from cloud_bridge.identity.issuer import utc
from cloud_bridge.registry import roles
from cloud_bridge.registry.directories import PRIVATE, make_directory
from cloud_bridge.registry.errors import DistrustedError, NotInitialisedError, RegistryError, SignatureMissingError
from cloud_bridge.registry.keys import load_public, load_signer, make_key
from cloud_bridge.registry.registry import Registry
from cloud_bridge.registry.repository import Staged
from cloud_bridge.registry.roles import Document, RoleName

log = structlog.get_logger()

DOCUMENTS: Final[tuple[RoleName, ...]] = ("root", "targets")
"""What may wait for keys that are elsewhere."""
_DOCUMENT_BYTES_MAX: Final = 16 << 20
"""More than three times what devices take."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a repository is begun.

    `root_public`: public keys that were made elsewhere; `root_keys` are drawn here besides. `targets_keys`: private
    keys of the targets that were brought for this once, to sign the empty list, and are not kept here; without them an
    online key is drawn.
    """

    root_directory: Path
    root_keys: int = 3
    threshold: int = 2
    root_public: tuple[Path, ...] = ()
    targets_keys: tuple[Path, ...] = ()
    passphrase: bytes | None = None


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key of a role; `file` is its private half, where it is on this machine."""

    role: RoleName
    keyid: str
    file: Path | None


@dataclass(frozen=True, slots=True)
class Status:
    """How the repository is."""

    versions: Mapping[RoleName, int]
    expires: Mapping[RoleName, datetime]
    thresholds: Mapping[RoleName, int]
    keys: tuple[KeyState, ...]
    waiting: Mapping[RoleName, int]  # signatures that staged documents still need
    warnings: tuple[str, ...]


def initialise(registry: Registry, beginning: Beginning, clock: Clock) -> list[KeyState]:
    """Draw the keys, and write an empty repository. Done again after it was cut short, it goes on with the same keys.

    Returns where the private keys lie.

    Raises:
        RegistryError: there is a repository already, or the thresholds do not fit.
    """
    keys = registry.keys
    if keys.root_file.exists():
        raise RegistryError(
            f"{keys.root_file} is there: the repository is begun already, and devices trust its root; "
            "`cloud-bridge registry status` shows it"
        )
    count = beginning.root_keys + len(beginning.root_public)
    if not 1 <= beginning.threshold <= count:
        raise RegistryError(f"a threshold of {beginning.threshold} does not fit {count} root keys")
    if beginning.threshold > beginning.root_keys:
        raise RegistryError(
            f"{beginning.threshold} of the root keys must sign now, and only {beginning.root_keys} are made here"
        )
    for directory in (keys.directory, keys.online, beginning.root_directory):
        make_directory(directory, PRIVATE)
    root_files = [beginning.root_directory / f"root-{number}.pem" for number in range(1, beginning.root_keys + 1)]
    signers: dict[str, CryptoSigner] = {}
    by_role: dict[RoleName, list[Key]] = {"root": [load_public(file) for file in beginning.root_public]}
    states: list[KeyState] = []

    def drawn(role: RoleName, file: Path, passphrase: bytes | None) -> None:
        if not file.exists():
            make_key(file, passphrase)
        signer = load_signer(file, passphrase)
        signers[signer.public_key.keyid] = signer
        by_role.setdefault(role, []).append(signer.public_key)
        states.append(KeyState(role, signer.public_key.keyid, file))

    for file in root_files:
        drawn("root", file, beginning.passphrase)
    for role in roles.ONLINE:
        drawn(role, keys.online / f"{role}-1.pem", None)
    for file in beginning.targets_keys:
        signer = load_signer(file, beginning.passphrase)
        signers[signer.public_key.keyid] = signer
        by_role.setdefault("targets", []).append(signer.public_key)
        states.append(KeyState("targets", signer.public_key.keyid, None))
    if not beginning.targets_keys:
        drawn("targets", keys.online / "targets-1.pem", None)
    now = utc(clock())
    thresholds: dict[RoleName, int] = {"root": beginning.threshold, "targets": max(1, len(by_role["targets"]) // 2 + 1)}
    root = roles.new_root(by_role, thresholds, roles.expiry(now, registry.settings.root_days))
    if roles.sign(root, "root", root.signed, signers):
        raise SignatureMissingError("too few root keys are here to sign the first root")
    with registry.repository.lock.held():
        registry.repository.initialise(root, signers)
    registry.ledger.note("registry-initialised", f"root threshold {beginning.threshold} of {count}")
    log.info("registry_initialised", url=registry.settings.url, root_keys=count, threshold=beginning.threshold)
    return states


def status(registry: Registry, clock: Clock) -> Status:
    """Look at everything.

    Raises:
        NotInitialisedError: there is no repository.
        DistrustedError: it is not the one that was signed last.
    """
    current = registry.repository.load()
    staged = registry.repository.staged(current)
    root = current.root.signed
    documents: dict[RoleName, Document] = {
        "root": current.root,
        "timestamp": current.timestamp,
        "snapshot": current.snapshot,
        "targets": current.targets,
    }
    files = {keyid: file for file, keyid in registry.keys.private_files()}
    keys = tuple(KeyState(role, keyid, files.get(keyid)) for role in roles.ROLES for keyid in root.roles[role].keyids)
    return Status(
        versions={role: document.signed.version for role, document in documents.items()},
        expires={role: document.signed.expires for role, document in documents.items()},
        thresholds={role: root.roles[role].threshold for role in roles.ROLES},
        keys=keys,
        waiting=_waiting(staged, current.root),
        warnings=tuple(_warnings(registry, keys, documents, root, utc(clock()))),
    )


def _waiting(staged: Staged, current: Metadata[Root]) -> dict[RoleName, int]:
    waiting: dict[RoleName, int] = {}
    trusted = (staged.root or current).signed
    if staged.root is not None:
        waiting["root"] = max(
            roles.missing(staged.root, "root", current.signed), roles.missing(staged.root, "root", staged.root.signed)
        )
    if staged.targets is not None:
        waiting["targets"] = roles.missing(staged.targets, "targets", trusted)
    return waiting


def _warnings(
    registry: Registry,
    keys: Sequence[KeyState],
    documents: Mapping[RoleName, Document],
    root: Root,
    now: datetime,
) -> Iterable[str]:
    here = sum(1 for key in keys if key.role == "root" and key.file is not None)
    if here >= root.roles["root"].threshold:
        yield (
            f"{here} root keys lie on this machine, enough to take the registry over: "
            f"move {registry.keys.root} to media that are kept apart"
        )
    for role, days in (("root", 90.0), ("targets", 30.0)):
        left = (documents[role].signed.expires - now).total_seconds() / 86_400  # type: ignore[index]  # a role
        if left < days:
            yield f"{role} ends in {max(0.0, left):.0f} days: " + (
                "`cloud-bridge registry rotate-key root` signs a new one"
                if role == "root"
                else "`cloud-bridge registry refresh --targets` signs it anew"
            )
    if documents["timestamp"].signed.expires < now:
        yield "the timestamp has expired, so devices take nothing new: start the bridge, or `registry refresh`"


def rotate_key(
    registry: Registry,
    role: RoleName,
    clock: Clock,
    *,
    root_keys: Sequence[Path],
    passphrase: bytes | None = None,
    old: str | None = None,
    new_public: Path | None = None,
) -> KeyState:
    """Change a key of a role, and sign everything that depends on it.

    Args:
        role: whose key.
        root_keys: private root keys that are at hand; the others can sign later, see `sign_staged`.
        passphrase: of those.
        old: the beginning of the key id that goes; needed where a role has several.
        new_public: a key that was made elsewhere; default: one is drawn here.

    Raises:
        RegistryError: no key, or several, begin with `old`.
        SignatureMissingError: keys that are elsewhere must sign; what to sign is staged.
    """
    with registry.repository.lock.held() as prolong:
        current = registry.repository.load()
        staged = registry.repository.staged(current)
        if staged.root is not None:
            raise RegistryError("another change of keys waits for signatures: see `cloud-bridge registry sign --help`")
        gone = _chosen(current.root.signed, role, old)
        key, file = _new_key(registry, role, new_public, passphrase)
        now = utc(clock())
        root = roles.next_root(current.root, roles.expiry(now, registry.settings.root_days))
        root.signed.revoke_key(gone, role)
        root.signed.add_key(key, role)
        for private in root_keys:
            signer = load_signer(private, passphrase)
            if signer.public_key.keyid in {
                *current.root.signed.roles["root"].keyids,
                *root.signed.roles["root"].keyids,
            }:
                root.sign(signer, append=True)
            else:
                raise RegistryError(f"{private} is no root key of this registry")
        if role == "root" and file is not None:
            root.sign(load_signer(file, passphrase), append=True)
        targets = registry.repository.draft(current) if role == "targets" else None
        registry.ledger.note("registry-key-changed", f"{role}: {gone[:16]} by {key.keyid[:16]}")
        registry.repository.commit(current, prolong, root=root, targets=targets)
    log.info("registry_key_changed", role=role, old=gone[:16], new=key.keyid[:16])
    return KeyState(role, key.keyid, file)


def _chosen(root: Root, role: RoleName, old: str | None) -> str:
    keyids = [keyid for keyid in root.roles[role].keyids if keyid.startswith(old or "")]
    if len(keyids) != 1:
        raise RegistryError(
            f"{len(keyids)} keys of {role} begin with {old or 'anything'}: give --old with the beginning of one of "
            + ", ".join(keyid[:16] for keyid in root.roles[role].keyids)
        )
    return keyids[0]


def _new_key(
    registry: Registry, role: RoleName, new_public: Path | None, passphrase: bytes | None
) -> tuple[Key, Path | None]:
    if new_public is not None:
        return load_public(new_public), None
    directory = registry.keys.root if role == "root" else registry.keys.online
    file = registry.keys.new_file(directory, role)
    return make_key(file, passphrase if role == "root" else None), file


# ---- signing elsewhere -------------------------------------------------------------------------------------------


def export_staged(registry: Registry, to: Path) -> list[Path]:
    """Write what waits for signatures into a directory, to be carried to the keys; with the root that says who signs.

    Raises:
        RegistryError: nothing waits.
    """
    staged = registry.repository.staged(registry.repository.load())
    if staged.is_empty:
        raise RegistryError("nothing waits for a signature")
    to.mkdir(parents=True, exist_ok=True)
    written = []
    for role, document in (("root", staged.root), ("targets", staged.targets)):
        if document is not None:
            file = to / f"{role}.json"
            write_file(file, roles.to_bytes(document), PUBLIC)
            written.append(file)
    return written


def sign_file(file: Path, key: Path, passphrase: bytes | None) -> tuple[RoleName, int]:
    """Add a signature to a document that was exported; needs no configuration and no network.

    Returns the role of the document and its version.

    Raises:
        RegistryError: it is no such document, or the key cannot be used.
    """
    role, document = _document(file)
    document.sign(load_signer(key, passphrase), append=True)
    write_file(file, roles.to_bytes(document), PUBLIC)
    return role, document.signed.version


def import_signed(registry: Registry, files: Sequence[Path]) -> dict[RoleName, int]:
    """Take signatures from documents that were carried back; when there are enough, make them count.

    Returns how many signatures are still missing, by role; all 0: it counts now.

    Raises:
        RegistryError: a document is not the one that waits.
    """
    with registry.repository.lock.held() as prolong:
        current = registry.repository.load()
        staged = registry.repository.staged(current)
        for file in files:
            role, document = _document(file)
            waits: Document | None = staged.root if role == "root" else staged.targets
            if waits is None or waits.signed_bytes != document.signed_bytes:
                raise RegistryError(
                    f"{file} is not the {role} document that waits: it was changed meanwhile; export it again"
                )
            waits.signatures |= document.signatures
        registry.repository.stage(staged)
        waiting = _waiting(staged, current.root)
        if not any(waiting.values()):
            signed = registry.repository.commit(current, prolong, root=staged.root, targets=staged.targets)
            registry.ledger.note("registry-signed", ", ".join(f"{role}" for role in waiting))
    if not any(waiting.values()):
        registry.refresh()
        log.info("registry_staged_signed", targets=signed.targets.signed.version, root=signed.root.signed.version)
    return waiting


def _document(file: Path) -> tuple[RoleName, Document]:
    try:
        content = read_plain(file, _DOCUMENT_BYTES_MAX)
    except OSError as error:
        raise RegistryError(f"{file}: {error.strerror or error}") from error
    for role, kind in (("root", Root), ("targets", Targets)):
        try:
            return role, roles.decoded(str(file), content, kind)  # type: ignore[return-value]  # either
        except DistrustedError:
            continue
    raise RegistryError(f"{file} is neither a root nor a targets document")


__all__ = ["Beginning", "KeyState", "NotInitialisedError", "Status"]
