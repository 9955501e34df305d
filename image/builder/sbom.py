"""What is inside, as CycloneDX 1.6: Debian packages, Python packages, and the parts that a vendor has supplied."""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import Parser
from pathlib import Path
from typing import Final
from urllib.parse import quote

from image.builder.boards import Board, Part
from image.builder.release import Release

_SPACE: Final = uuid.UUID("6b8d7f2e-93d0-5b53-9d0e-5c1a0a9e4a10")


@dataclass(frozen=True, slots=True, order=True)
class Component:
    """One package."""

    purl: str
    name: str
    version: str
    kind: str  # deb, pypi or generic
    licence: str = ""
    size: int = 0  # bytes as installed
    sha256: str = ""  # of a file that is a component by itself


def debian(root: Path, release: str) -> list[Component]:
    """Read dpkg's status."""
    found = []
    for paragraph in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if "install ok installed" not in fields.get("Status", ""):
            continue
        name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={arch}&distro={release}"
        found.append(Component(purl, name, version, "deb", "", int(fields.get("Installed-Size", "0")) * 1024))
    return sorted(found)


def python(site: Path) -> list[Component]:
    """Read the metadata of installed packages."""
    found = []
    for folder in site.glob("*.dist-info"):
        fields = Parser().parsestr((folder / "METADATA").read_text(errors="replace"))
        name, version = fields["Name"], fields["Version"]
        sizes = (line.rsplit(",", 1)[-1] for line in (folder / "RECORD").read_text().splitlines())
        licence = fields.get("License-Expression") or fields.get("License") or ""
        found.append(
            Component(
                f"pkg:pypi/{quote(re.sub(r'[-_.]+', '-', name).lower())}@{quote(version)}",
                name,
                version,
                "pypi",
                licence.splitlines()[0] if licence else "",
                sum(int(each) for each in sizes if each.isdigit()),
            )
        )
    return sorted(found)


def vendor(parts: Mapping[Part, Path]) -> list[Component]:
    """Name each part by its digest: what version it is only its vendor knows."""
    found = []
    for part, file in parts.items():
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = Path(part.path).name
        purl = f"pkg:generic/{quote(name)}?checksum=sha256:{digest}"
        found.append(Component(purl, name, digest[:12], "generic", "", len(content), digest))
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
    if component.licence:
        entry["licenses"] = [{"license": {"name": component.licence}}]
    return entry
