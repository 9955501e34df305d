"""What a release is to the registry."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import ModelManifest, Target, read_manifest

ReleaseState = Literal["candidate", "approved"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A target of the repository (TUF §4.5): `path` as clients name it, `custom` as signed with it."""

    path: str
    size_bytes: int
    sha256: str
    custom: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Where it lies below the repository's URL, with consistent snapshots (TUF §3.1)."""
        directory, _, name = self.path.rpartition("/")
        return f"targets/{directory}/{self.sha256}.{name}"


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """A release.

    `token` orders all releases of the registry, and devices never accept a lower one from a rollout. `digest` is the
    SHA-256 of its manifest.json, which names the digests of everything else. `published_ns` is None until its
    metadata is signed. A `candidate` waits for a person, or for a canary.
    """

    name: str
    version: str
    token: int
    digest: str
    state: ReleaseState
    published_ns: int | None
    yanked_ns: int | None
    yanked_why: str
    targets: tuple[Target, ...]
    files: tuple[StoredFile, ...]
    manifest: ModelManifest
    hardware: tuple[str, ...] = ()  # empty: any
    accepted: tuple[str, ...] = ()  # problems that the publisher has overruled
    created_ns: int = 0
    approved_ns: int | None = None
    approved_by: str = ""
    key_name: str = field(default="", repr=False)  # of its content key
    manifest_bytes: bytes = field(default=b"", repr=False)

    @property
    def label(self) -> str:
        """`name version`, for messages."""
        return f"{self.name} {self.version}"

    @property
    def is_offered(self) -> bool:
        """Whether devices can install it."""
        return self.published_ns is not None and self.yanked_ns is None


def directory_of(name: str, version: str) -> str:
    """Return the directory of a release in target paths."""
    return f"models/{name}/{version}"


def with_token(manifest: bytes, token: int) -> bytes:
    """Return a manifest with its deployment token filled in; fields that are not known here are kept.

    Raises:
        MalformedManifestError: it is none.
    """
    read_manifest(manifest)
    try:
        document = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise MalformedManifestError(f"manifest: {error}") from error
    document["deployment_token"] = token
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def digest_of(content: bytes) -> str:
    """Return the SHA-256 as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
