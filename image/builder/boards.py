"""Boards: what a target adds to the image, read from boards/*/board.toml, and the parts a vendor has to supply."""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from image.builder import formats
from image.builder.errors import BuildError, MissingError

Bootloader = Literal["sdboot", "uboot", "custom"]

EFI_ARCH: Final = {"amd64": "x64", "arm64": "aa64"}
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Part:
    """Something of a vendor that cannot be had from Debian: put into the folder named with VENDOR= (--vendor)."""

    path: str  # in that folder
    what: str
    source: str  # where a person gets it
    contains: str = ""  # bytes that must be in it, e.g. the magic of its format
    sha256: str = ""
    install: str = ""  # where it goes in the root; empty: the build uses it itself
    at: str = ""  # where it is written to the disk, outside of file systems, e.g. 33K
    before: str = ""  # where it has to end
    debian: str = ""  # where it is in the root, as a pattern, when the vendor supplies none
    required: bool = True


@dataclass(frozen=True, slots=True)
class Partitions:
    """Sizes in bytes."""

    loader: int  # from 1 MiB on, for boot loaders that keep something at a fixed place; 0: none
    esp: int
    root: int  # of each slot
    outbox_min: int
    outbox_max: int
    data_min: int


@dataclass(frozen=True, slots=True)
class Board:
    """One target."""

    name: str
    folder: Path
    description: str
    architecture: str
    bootloader: Bootloader
    packages: tuple[str, ...]
    drop_modules: tuple[str, ...]
    initrd_without: tuple[str, ...]  # patterns
    cmdline: tuple[str, ...]
    tries: int
    partitions: Partitions
    vendor: tuple[Part, ...]
    booted: bool  # is it booted in the tests, or are only its contents checked

    @property
    def compatible(self) -> str:
        """The name that bundles and devices must share."""
        return f"sluice-{self.name}"

    @property
    def overlays(self) -> tuple[Path, ...]:
        """Folders laid over the root, in this order."""
        common = self.folder.parent.parent / "overlay"
        return tuple(each for each in (common, self.folder / "overlay") if each.is_dir())


def names(image: Path) -> list[str]:
    """List the targets."""
    return sorted(file.parent.name for file in (image / "boards").glob("*/board.toml"))


def load(image: Path, name: str) -> Board:
    """Read a target, with what all of them share.

    Raises:
        BuildError: there is no such target, or its file is wrong; the message names the place.
    """
    file = image / "boards" / name / "board.toml"
    if name not in names(image):  # a path that leads to one would become part of what a device must match
        raise BuildError(f"no target {name!r}; there are: {', '.join(names(image))}")
    base = _read(image / "base.toml")
    board = _read(file)
    try:
        return _board(name, file.parent, base, board)
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(f"{file}: {error.args[0] if error.args else error}") from error


def _board(name: str, folder: Path, base: Mapping[str, Any], board: Mapping[str, Any]) -> Board:
    architecture = board["architecture"]
    if architecture not in EFI_ARCH:
        raise ValueError(f"architecture {architecture!r} is none of {', '.join(EFI_ARCH)}")
    bootloader = board["bootloader"]
    if bootloader not in {"sdboot", "uboot", "custom"}:
        raise ValueError(f"bootloader {bootloader!r} is none of sdboot, uboot, custom")
    sizes = board["partitions"]
    absent = set(board.get("without_packages", []))
    return Board(
        name=name,
        folder=folder,
        description=board["description"],
        architecture=architecture,
        bootloader=cast(Bootloader, bootloader),
        packages=tuple(sorted({*base["packages"], *board["packages"]} - absent)),
        drop_modules=tuple(base["drop_modules"]) if board.get("drop_modules", True) else (),
        # What a vendor's kernel boots with is not ours to know.
        initrd_without=tuple(base["initrd_without"]) if board.get("drop_modules", True) else (),
        cmdline=(*base["cmdline"], *board.get("cmdline", []), *(f"console={each}" for each in board["console"])),
        tries=base["tries"]["count"],
        partitions=Partitions(
            loader=size(sizes.get("loader", "0")),
            esp=size(sizes["esp"]),
            root=size(sizes["root"]),
            outbox_min=size(sizes["outbox"]["min"]),
            outbox_max=size(sizes["outbox"]["max"]),
            data_min=size(sizes["data"]["min"]),
        ),
        vendor=tuple(Part(**part) for part in board.get("vendor", [])),
        booted=board.get("booted", True),
    )


def size(text: str) -> int:
    """Read a size such as 160M, in powers of 1024.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if match is None:
        raise ValueError(f"{text!r} is no size; write e.g. 160M or 1G")
    return int(match[1]) * _UNITS[match[2]]


def check_vendor(board: Board, folder: Path | None) -> dict[Part, Path]:
    """Look for the vendor's parts and return where each is.

    Raises:
        MissingError: one that is needed is missing or wrong; the message lists all of them, with where to get them.
    """
    if folder is not None and not folder.is_dir():
        raise MissingError(f"{folder}: no such folder; VENDOR=FOLDER (--vendor) names the one with the vendor's parts")
    found: dict[Part, Path] = {}
    wrong: list[str] = []
    for part in board.vendor:
        file = folder / part.path if folder is not None else None
        if file is None or not file.exists():
            if part.required:
                wrong.append(f"  {part.path}: missing\n      what:  {part.what}\n      where: {part.source}")
            continue
        objection = _objection(part, file, board.architecture)
        if objection:
            wrong.append(f"  {part.path}: {objection}\n      what:  {part.what}\n      where: {part.source}")
        else:
            found[part] = file
    if wrong:
        where = f"in {folder}" if folder is not None else "in a folder of yours, named with VENDOR=FOLDER (--vendor)"
        raise MissingError(f"{board.name} takes parts of its vendor, {where}:\n" + "\n".join(wrong))
    return found


def _objection(part: Part, file: Path, architecture: str) -> str:
    if not file.is_file():
        return "is no file"
    content = file.read_bytes()
    if part.sha256 and hashlib.sha256(content).hexdigest() != part.sha256:
        return f"its SHA-256 is {hashlib.sha256(content).hexdigest()}, wanted is {part.sha256}"
    if part.at and size(part.at) + len(content) > size(part.before):
        return f"has {len(content)} bytes; between {part.at} and {part.before} on the disk it does not fit"
    unfit = formats.objection(file.name, content, architecture)
    if unfit:
        return unfit
    if part.contains and part.contains.encode("latin-1") not in content:
        return f"does not contain {part.contains!r}, so it is something else"
    return ""


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BuildError(f"{file}: {error}") from error


def listed(parts: Sequence[Part]) -> list[dict[str, object]]:
    """Return the parts for `--json` and the manifest."""
    return [{"path": each.path, "what": each.what, "where": each.source, "required": each.required} for each in parts]
