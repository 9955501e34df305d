"""What is inside, as CycloneDX 1.6: Debian packages, Python packages, and the parts that a vendor has supplied."""

import hashlib
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Final
from urllib.parse import quote

from image.builder.boards import Board, Part
from image.builder.release import Release

_SPACE: Final = uuid.UUID("6b8d7f2e-93d0-5b53-9d0e-5c1a0a9e4a10")
_FIELD: Final = re.compile(r"^([A-Za-z-]+): (.*)$", re.MULTILINE)
_NAME: Final = re.compile(r"(?=.{1,60}$)[^\s,;]+(?:,? (?:or|and|with) [^\s,;]+(?: exceptions?)?)*", re.IGNORECASE)
"""A name, or several: what is longer is the text of a licence that begins on the same line."""
_SPDX: Final[Mapping[str, str]] = {
    **{
        f"{name}{later}": f"{name}{'' if '.' in name else '.0'}{'-or-later' if later else '-only'}"
        for name in ("GPL-1", "GPL-2", "GPL-3", "LGPL-2", "LGPL-2.1", "LGPL-3")
        for later in ("", "+")
    },
    **{name.replace("C", "c"): name for name in ("BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause")},
    **{name: name for name in ("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause", "CC0-1.0")},
    **{name: name for name in ("FSFAP", "FSFUL", "FSFULLR", "ISC", "MIT", "MPL-2.0", "OLDAP-2.8", "X11", "Zlib")},
    "Apache-2": "Apache-2.0",
    "Expat": "MIT",
    "OpenLDAP-2.8": "OLDAP-2.8",
    "zlib": "Zlib",
}
"""Names of Debian's (DEP-5, "short names") as SPDX has them; all others stay as they are."""


@dataclass(frozen=True, slots=True, order=True)
class Component:
    """One package."""

    purl: str
    name: str
    version: str
    kind: str  # deb, pypi or generic
    licences: tuple[str, ...] = ()  # as its authors name them; of files in it, not of the whole
    expression: str = ""  # of the whole, in the syntax of SPDX, where its authors say that
    size: int = 0  # bytes as installed
    sha256: str = ""  # of a file that is a component by itself


def debian(root: Path, release: str) -> list[Component]:
    """Read dpkg's status, and the licences that the packages' copyright files name."""
    found = []
    installed = [
        fields
        for paragraph in (root / "var/lib/dpkg/status").read_text().split("\n\n")
        if "install ok installed" in (fields := dict(_FIELD.findall(paragraph))).get("Status", "")
    ]
    of_package = {fields["Package"]: licences_of(root / "usr/share/doc" / fields["Package"]) for fields in installed}
    # The folder of a package may be a link to that of another one of the same source, which the image goes without.
    of_source: defaultdict[str, set[str]] = defaultdict(set)
    for fields in installed:
        of_source[_source(fields)].update(of_package[fields["Package"]])
    for fields in installed:
        name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={arch}&distro={release}"
        licences = of_package[name] or tuple(sorted(of_source[_source(fields)]))
        size = int(fields.get("Installed-Size", "0")) * 1024
        found.append(Component(purl, name, version, "deb", licences, size=size))
    return sorted(found)


def _source(fields: Mapping[str, str]) -> str:
    return fields.get("Source", fields["Package"]).partition(" ")[0]


def licences_of(documents: Path) -> tuple[str, ...]:
    """Return the licences that the file `copyright` of a Debian package names, in order; none where it has no names.

    In the machine-readable form (DEP-5) these are short names; others refer to the texts in /usr/share/common-licenses.
    """
    file = documents / "copyright"
    if not file.is_file():
        return ()
    text = file.read_text(errors="replace")
    if re.match(r"\s*Format", text):
        names = {" ".join(name.split()).rstrip(".,;") for name in re.findall(r"^License:(.*)$", text, re.MULTILINE)}
        return tuple(sorted({_SPDX.get(name, name) for name in names if _NAME.fullmatch(name)}))
    # Which text it is, and not whether a later version may be chosen.
    return tuple(sorted(set(re.findall(r"/usr/share/common-licenses/([A-Za-z]+(?:-[0-9]+(?:\.[0-9]+)?)?)", text))))


def python(site: Path) -> list[Component]:
    """Read the metadata of installed packages."""
    found = []
    for folder in site.glob("*.dist-info"):
        fields = Parser().parsestr((folder / "METADATA").read_text(errors="replace"))
        name, version = fields["Name"], fields["Version"]
        sizes = (line.rsplit(",", 1)[-1] for line in (folder / "RECORD").read_text().splitlines())
        found.append(
            Component(
                f"pkg:pypi/{quote(re.sub(r'[-_.]+', '-', name).lower())}@{quote(version)}",
                name,
                version,
                "pypi",
                () if fields.get("License-Expression") else _loose(fields),
                fields.get("License-Expression") or "",
                sum(int(each) for each in sizes if each.isdigit()),
            )
        )
    return sorted(found)


def _loose(fields: Message) -> tuple[str, ...]:
    """Return the licences of a package that names none by an expression: in its own words, or by its classifiers."""
    lines = (fields.get("License") or "").strip().splitlines()
    if lines and lines[0].strip().upper() != "UNKNOWN":
        return (lines[0].strip(),)
    classifiers = (each.split(" :: ") for each in fields.get_all("Classifier") or [])
    return tuple(sorted({words[-1] for words in classifiers if words[0] == "License" and words[-1] != "OSI Approved"}))


def vendor(parts: Mapping[Part, Path]) -> list[Component]:
    """Name each part by its digest: what version it is only its vendor knows."""
    found = []
    for part, file in parts.items():
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = Path(part.path).name
        purl = f"pkg:generic/{quote(name)}?checksum=sha256:{digest}"
        found.append(Component(purl, name, digest[:12], "generic", size=len(content), sha256=digest))
    return sorted(found)


def document(board: Board, release: Release, components: Iterable[Component]) -> str:
    """Write the bill. The same components give the same document."""
    ordered = sorted(components)
    digest = hashlib.sha256("\n".join(each.purl for each in ordered).encode()).hexdigest()
    return (
        json.dumps(
            {
                "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
                "bomFormat": "CycloneDX",
                "specVersion": "1.6",
                "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, f'{board.name} {release.commit} {digest}')}",
                "version": 1,
                "metadata": {
                    "timestamp": datetime.fromtimestamp(release.epoch, UTC).isoformat().replace("+00:00", "Z"),
                    "component": {
                        "type": "firmware",
                        "bom-ref": board.compatible,
                        "name": board.compatible,
                        "version": release.version,
                        "properties": [{"name": "sluice:commit", "value": release.commit}],
                    },
                },
                "components": [_entry(each) for each in ordered],
                "dependencies": [{"ref": board.compatible, "dependsOn": [each.purl for each in ordered]}],
            },
            indent=1,
        )
        + "\n"
    )


def _entry(component: Component) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "library" if component.kind == "pypi" else "application" if component.kind == "deb" else "file",
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "purl": component.purl,
    }
    if component.sha256:
        entry["hashes"] = [{"alg": "SHA-256", "content": component.sha256}]
    if component.expression:
        entry["licenses"] = [{"expression": component.expression}]
    elif component.licences:
        known = _SPDX.values()
        entry["licenses"] = [{"license": {"id" if each in known else "name": each}} for each in component.licences]
    return entry
