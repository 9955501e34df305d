"""What the root is made of, by size: each file counts for the package that brought it."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_MERGED: Final = ("/bin/", "/sbin/", "/lib/", "/lib64/")  # of usr: packages may still name them so
_MODULES: Final = "usr/lib/modules/"
_APPLICATION: Final = "opt/sluice/"
OWN: Final = "Sluice"


@dataclass(frozen=True, slots=True)
class Content:
    """One row: a package, and what its files take unpacked."""

    name: str
    kind: str  # debian, python, kernel or sluice
    size: int  # bytes


def debian_owners(root: Path) -> dict[str, str]:
    """Say which package each path is of. To be asked before dpkg's database is taken out of the root."""
    owners: dict[str, str] = {}
    for listing in sorted((root / "var/lib/dpkg/info").glob("*.list")):
        package = listing.name.removesuffix(".list").partition(":")[0]
        for path in listing.read_text().splitlines():
            owners[f"/usr{path}" if path.startswith(_MERGED) else path] = package
    return owners


def contents(root: Path, site: PurePosixPath, owners: Mapping[str, str]) -> list[Content]:
    """Add up what is there, largest first.

    Args:
        root: as it is packed.
        site: folder of Python packages in it, relative.
        owners: of Debian's files.
    """
    wheels = _wheel_owners(root / site)
    found: Counter[tuple[str, str]] = Counter()
    seen: set[int] = set()
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder) / name
            facts = file.lstat()
            if facts.st_ino in seen:  # a second name of the same file
                continue
            seen.add(facts.st_ino)
            found[_row(PurePosixPath(file.relative_to(root)), site, owners, wheels)] += facts.st_size
    rows = [Content(name, kind, size) for (kind, name), size in found.items() if size]
    return sorted(rows, key=lambda row: (-row.size, row.name))


def table(rows: Sequence[Content], shown: int = 15) -> list[str]:
    """Write the largest as lines, and the rest as one."""
    lines = [f"{row.size / 1e6:9.1f} MB  {row.name} ({row.kind})" for row in rows[:shown]]
    rest = rows[shown:]
    if rest:
        lines.append(f"{sum(row.size for row in rest) / 1e6:9.1f} MB  {len(rest)} more")
    return lines


def _row(
    path: PurePosixPath, site: PurePosixPath, owners: Mapping[str, str], wheels: Mapping[str, str]
) -> tuple[str, str]:
    text = str(path)
    if text.startswith(_MODULES):
        return "kernel", "kernel modules"
    if path.is_relative_to(site):
        inside = path.relative_to(site).parts
        return "python", wheels.get(inside[0], inside[0])
    if text.startswith(_APPLICATION):
        return "sluice", OWN
    # Compiled when the package was installed, and not in its list.
    source = path.parent.parent / f"{path.name.split('.')[0]}.py" if path.parent.name == "__pycache__" else path
    owner = owners.get(f"/{source}")
    return ("debian", owner) if owner else ("sluice", "configuration, caches")


def _wheel_owners(site: Path) -> dict[str, str]:
    """Say which distribution each first name below site-packages is of."""
    owners: dict[str, str] = {}
    for info in sorted(site.glob("*.dist-info")):
        name = info.name.split("-")[0]
        for first in _first_names((info / "RECORD").read_text().splitlines()):
            owners.setdefault(first, name)
    return owners


def _first_names(record: Iterable[str]) -> set[str]:
    return {line.rsplit(",", 2)[0].strip('"').split("/")[0] for line in record if line}
