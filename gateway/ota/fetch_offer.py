"""What the signed list says about releases, and what a release must look like to be an offer. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from tuf.api.metadata import TargetFile

from gateway.ota.errors import BadReleaseError, NotOfferedError, TrustError
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import MANIFEST_FILE, ModelManifest, Sha256, Target, read_manifest

_PATH: Final = re.compile(
    r"models/(?P<name>[a-z0-9][a-z0-9-]{0,62})/(?P<version>\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)/"
    r"(?P<file>[A-Za-z0-9_][A-Za-z0-9_.-]{0,254})"
)


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """A file that is signed for. `path` is its TUF target path, `custom` what the repository says about it."""

    path: str
    size_bytes: int
    sha256: str
    custom: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Listed:
    """A release of the signed list, before its manifest was looked at."""

    name: str
    version: str
    token: int
    hardware: tuple[str, ...]  # empty: any
    size_bytes: int  # of all its files


@dataclass(frozen=True, slots=True)
class Release:
    """A release of the signed list with its files; `files` are all but the manifest, by path."""

    listed: Listed
    manifest: OfferedFile
    files: tuple[OfferedFile, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A release that this device may install. `manifest_bytes` are as signed; `files` are all but the manifest."""

    name: str
    version: str
    token: int
    manifest: ModelManifest
    manifest_bytes: bytes
    files: tuple[OfferedFile, ...]


class _ManifestSays(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="manifest"):
    """`custom` of a manifest."""

    name: str
    version: str
    token: int
    hardware: tuple[str, ...] = ()


class _GoldenSays(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="golden"):
    """`custom` of a golden file."""


class _ArtefactSays(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="artefact"):
    """`custom` of a sealed artefact; digest and size are those of the plain one."""

    target: Target
    sha256: Sha256
    size_bytes: int
    packed: str = ""


class _PatchSays(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="patch"):
    """`custom` of a sealed patch; digest and size are those of what it makes."""

    target: Target
    method: str
    base_version: str
    base_sha256: Sha256
    sha256: Sha256
    size_bytes: int


_Says = _ManifestSays | _GoldenSays | _ArtefactSays | _PatchSays


def offered(path: str, target: TargetFile) -> OfferedFile:
    """Turn an entry of the signed list into ours.

    Raises:
        BadReleaseError: it has no SHA-256, or says what is no object.
    """
    digest = target.hashes.get("sha256", "")
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise BadReleaseError(f"{path[:200]}: is signed without a SHA-256")
    custom = target.unrecognized_fields.get("custom", {})
    if not isinstance(custom, dict):
        raise BadReleaseError(f"{path[:200]}: `custom` is no object")
    return OfferedFile(path, target.length, digest, custom)


def listed(files: Mapping[str, TargetFile]) -> list[Listed]:
    """Return every release in a list, newest token first; what is none is left out."""
    names = {(found["name"], found["version"]) for path in files if (found := _PATH.fullmatch(path))}
    releases = []
    for name, version in names:
        try:
            releases.append(release_of(files, name, version).listed)
        except TrustError:  # whoever asks for it by name is told why
            continue
    return sorted(releases, key=lambda each: (-each.token, each.name, each.version))


def release_of(files: Mapping[str, TargetFile], name: str, version: str) -> Release:
    """Find a release.

    Raises:
        NotOfferedError: it is not in the list.
        BadReleaseError: its entries are not as they should be.
    """
    prefix = f"models/{name}/{version}/"
    found = {path: offered(path, target) for path, target in files.items() if path.startswith(prefix)}
    manifest = found.pop(prefix + MANIFEST_FILE, None)
    if manifest is None or _PATH.fullmatch(manifest.path) is None:
        raise NotOfferedError(f"{name} {version}: not in the signed list; it was never published, or taken back")
    says = _says(manifest)
    if not isinstance(says, _ManifestSays) or (says.name, says.version) != (name, version):
        raise BadReleaseError(f"{manifest.path}: is signed as something else")
    strange = next((path for path in found if _PATH.fullmatch(path) is None), None)
    if strange is not None:
        raise BadReleaseError(f"{strange[:200]}: no release has such a file")
    size = manifest.size_bytes + sum(file.size_bytes for file in found.values())
    return Release(
        Listed(name, version, says.token, says.hardware, size), manifest, tuple(found[path] for path in sorted(found))
    )


def offer_of(release: Release, manifest_bytes: bytes) -> Offer:
    """Make an offer of a release and its verified manifest.

    Raises:
        BadReleaseError: the manifest is none, is of another release, or contradicts the signed list.
    """
    head = release.listed
    try:
        manifest = read_manifest(manifest_bytes)
    except MalformedManifestError as error:
        raise BadReleaseError(f"{release.manifest.path}: {error}") from error
    if (manifest.name, manifest.version, manifest.deployment_token) != (head.name, head.version, head.token):
        raise BadReleaseError(
            f"{release.manifest.path}: is of {manifest.name} {manifest.version}, token {manifest.deployment_token}; "
            f"signed as {head.name} {head.version}, token {head.token}"
        )
    _require_agreement(manifest, release.files)
    return Offer(head.name, head.version, head.token, manifest, manifest_bytes, release.files)


def _require_agreement(manifest: ModelManifest, files: Sequence[OfferedFile]) -> None:
    """Hold what the list says about files against the manifest: one of the two would otherwise go unchecked."""
    plain = {artefact.target: (artefact.sha256, artefact.size_bytes) for artefact in manifest.artefacts}
    golden = {each.input: each.input_sha256 for each in manifest.golden}
    golden |= {each.output: each.output_sha256 for each in manifest.golden}
    for file in files:
        match _says(file):
            case _ArtefactSays() | _PatchSays() as says:
                agrees = plain.get(says.target) == (says.sha256, says.size_bytes)
            case _GoldenSays():
                agrees = golden.get(file.name) == file.sha256
            case _ManifestSays():
                agrees = False
        if not agrees:
            raise BadReleaseError(f"{file.path}: the manifest of the release says otherwise")


def _says(file: OfferedFile) -> _Says:
    try:
        says: _Says = msgspec.convert(dict(file.custom), _Says)
    except msgspec.ValidationError as error:
        raise BadReleaseError(f"{file.path}: `custom`: {error}") from error
    return says
