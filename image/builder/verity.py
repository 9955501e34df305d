"""Packs the root: erofs, and dm-verity's hash tree behind it in the same partition."""

import hashlib
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image.builder.chroot import Tree
from image.builder.errors import BuildError

_BLOCK: Final = 4096
_SPACE: Final = uuid.UUID("f3a4e9d2-6f0b-5d0c-9a55-7d1f2d3b8c11")


@dataclass(frozen=True, slots=True)
class Root:
    """A packed root."""

    file: Path
    root_hash: str
    hash_offset: int  # bytes
    size: int  # bytes, hash tree included


def pack(tree: Path, out: Path, tools: Tree, *, name: str, epoch: int, limit: int) -> Root:
    """Pack a tree. The same tree, name and epoch give the same bytes: UUIDs and the salt follow from them.

    Args:
        tree: what goes in.
        out: the file.
        name: of the image, e.g. target and version.
        epoch: the time of all files, seconds.
        tools: has mkfs.erofs and veritysetup.
        limit: the size of a slot, bytes.

    Raises:
        BuildError: a tool failed, or it does not fit.
    """
    out.unlink(missing_ok=True)
    identity = uuid.uuid5(_SPACE, name)
    folder = out.parent
    tools.run(
        [
            "mkfs.erofs", "--quiet", "-zlz4hc,9", "-C65536", f"-T{epoch}", "--all-time",
            f"-U{identity}", f"/run/b/out/{out.name}", "/run/b/tree",
        ],
        {tree: "/run/b/tree", folder: "/run/b/out"},
    )  # fmt: skip
    size = out.stat().st_size
    offset = -(-size // _BLOCK) * _BLOCK
    with out.open("r+b") as file:
        file.truncate(offset)
    salt = hashlib.sha256(f"salt {name}".encode()).hexdigest()
    printed = tools.capture(
        [
            "veritysetup", "format", f"--hash-offset={offset}", f"--salt={salt}", f"--uuid={uuid.uuid5(_SPACE, salt)}",
            f"/run/b/out/{out.name}", f"/run/b/out/{out.name}",
        ],
        {folder: "/run/b/out"},
    )  # fmt: skip
    match = re.search(r"Root hash:\s*([0-9a-f]{64})", printed)
    if match is None:
        raise BuildError(f"veritysetup printed no root hash:\n{printed}")
    whole = out.stat().st_size
    if whole > limit:
        raise BuildError(f"the root takes {whole} bytes, a slot has {limit}: enlarge partitions.root or drop packages")
    return Root(out, match[1], offset, whole)
