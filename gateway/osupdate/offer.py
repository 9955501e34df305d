"""Bundles of the system in the repository: what the signed list says of them. Pure.

A bundle is one target, `os/<compatible>/<version>/bundle.raucb`. Its custom metadata says what the bundle says of
itself, so that one that does not fit is not fetched; and the digest of its signature part, which covers the root of the
hash tree over everything before it, so that a bundle can be believed without having been read from end to end.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from gateway.osupdate.release import BundleFacts
from gateway.ota.errors import BadReleaseError
from gateway.ota.fetch_offer import OfferedFile
from gateway.wire.manifest import Sha256

COMPATIBLE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
VERSION: Final = re.compile(r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?")


class OsSays(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="os"):
    """`custom` of a bundle. The last `tail_bytes` of the file have the digest `tail_sha256`."""

    compatible: str
    version: str
    floor: str = ""
    counter: int | None = None
    adaptive: bool = False
    tail_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    tail_sha256: Sha256 | None = None
    manifest_sha256: Sha256 | None = None
    pcr11: Mapping[str, str] = {}

    @property
    def facts(self) -> BundleFacts:
        """What the bundle is."""
        return BundleFacts(
            self.compatible, self.version, self.floor, self.counter, self.adaptive, tuple(sorted(self.pcr11.items()))
        )


def path_of(compatible: str, version: str) -> str:
    """Return where a bundle is in the repository.

    Raises:
        BadReleaseError: one of the two cannot be part of a path.
    """
    if COMPATIBLE.fullmatch(compatible) is None or VERSION.fullmatch(version) is None:
        raise BadReleaseError(f"{compatible[:80]!r} {version[:80]!r}: no bundle can be called that")
    return f"os/{compatible}/{version}/bundle.raucb"


def says_of(file: OfferedFile) -> OsSays:
    """Read what is signed about a bundle.

    Raises:
        BadReleaseError: it is no bundle, or of another path.
    """
    try:
        says = msgspec.convert(dict(file.custom), OsSays)
    except msgspec.ValidationError as error:
        raise BadReleaseError(f"{file.path}: `custom`: {error}") from error
    if file.path != path_of(says.compatible, says.version):
        raise BadReleaseError(f"{file.path}: is signed as {says.compatible} {says.version}")
    return says
