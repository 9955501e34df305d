"""Which Python packages the appliance needs: the part of requirements/runtime.txt that the extra `device` leads to."""

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from image.builder.errors import BuildError

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^ ;\\]+)\s*(?:;([^\\]*))?")

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Pin:
    """One locked package."""

    name: str  # normalized, PEP 503
    version: str
    lines: tuple[str, ...]  # as in the file, hashes included

    @property
    def hashes(self) -> frozenset[str]:
        """The SHA-256 of its files, in hexadecimal."""
        return frozenset(_HASH.findall("\n".join(self.lines)))


def normalized(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(file: Path) -> dict[str, Pin]:
    """Read a requirements file with hashes; what is for Windows alone is left out."""
    pins: dict[str, Pin] = {}
    block: list[str] = []
    for line in [*file.read_text().splitlines(), ""]:
        if block and not line.startswith(" "):
            match = _PIN.match(block[0])
            if match and "win32" not in (match[3] or ""):
                pins[normalized(match[1])] = Pin(normalized(match[1]), match[2], tuple(block))
            block = []
        if line and not line.startswith(("#", " ")):
            block = [line]
        elif block and line.startswith(" "):
            block.append(line)
    return pins


def seeds(pyproject: Path, extra: str) -> list[str]:
    """Return the names that the project itself asks for: its dependencies and those of one extra."""
    project = tomllib.loads(pyproject.read_text())["project"]
    return [requirement_name(each) for each in (*project["dependencies"], *project["optional-dependencies"][extra])]


def requirement_name(requirement: str) -> str:
    """Return the normalized name in a requirement such as `psycopg[binary]>=3.2`.

    Raises:
        BuildError: it has none.
    """
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if match is None:
        raise BuildError(f"no requirement: {requirement!r}")
    return normalized(match[1])


def closure(
    wanted: Iterable[str], pins: dict[str, Pin], fetch: Callable[[list[Pin]], dict[str, list[str]]]
) -> dict[str, Pin]:
    """Follow the requirements of packages through the lock.

    Args:
        wanted: names to begin with.
        pins: the lock.
        fetch: gets packages and returns what each requires (`Requires-Dist`), by name.

    Raises:
        BuildError: a package is needed that the lock has not.
    """
    chosen: dict[str, Pin] = {}
    front = sorted(set(wanted))
    while front:
        missing = [name for name in front if name not in pins]
        if missing:
            raise BuildError(f"not in the lock: {', '.join(missing)}; run `make lock`")
        new = [pins[name] for name in front]
        chosen |= {pin.name: pin for pin in new}
        required = {
            requirement_name(each)
            for requirements in fetch(new).values()
            for each in requirements
            if "extra ==" not in each.replace("'", '"')
        }
        # What a marker leaves out for this platform is not in the lock, or does no harm.
        front = sorted((required & pins.keys()) - chosen.keys())
    return chosen
