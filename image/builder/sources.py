"""Where packages come from: derived from the apt configuration of the machine that builds, so that no mirror is named
in the repository, and proxies, local mirrors and keyrings of that machine are used.

One-line format: sources.list(5); the other: deb822(5).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image.builder.errors import MissingError

SUITES: Final = ("", "-updates", "-security")
_OPTIONS = re.compile(r"\[([^\]]*)\]")
_ALIASES: Final = {"stable", "oldstable", "oldoldstable", "testing"}


@dataclass(frozen=True, slots=True)
class Source:
    """One archive and suite."""

    uri: str
    suite: str
    signed_by: str = ""  # path of a keyring; empty: what apt trusts

    def line(self, architecture: str) -> str:
        """Write it in the one-line format."""
        options = [f"arch={architecture}"] + ([f"signed-by={self.signed_by}"] if self.signed_by else [])
        return f"deb [{' '.join(options)}] {self.uri} {self.suite} main"


def host_sources(etc_apt: Path) -> list[Source]:
    """Read the archives of Debian (component main, binary packages) that a machine uses."""
    found: list[Source] = []
    lists = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*.list"))]
    for file in lists:
        if file.is_file():
            found += _one_line(file.read_text(errors="replace"))
    for file in sorted((etc_apt / "sources.list.d").glob("*.sources")):
        found += _deb822(file.read_text(errors="replace"))
    return [source for source in found if _is_debian(source.uri)]


def for_release(sources: Iterable[Source], host: str, release: str) -> list[Source]:
    """Carry the archives over to another release, e.g. from bookworm-security to trixie-security.

    Args:
        sources: of the host.
        host: its code name.
        release: the code name wanted.

    Raises:
        MissingError: the host has no archive of Debian for its own release.
    """
    carried: list[Source] = []
    for source in sources:
        for suffix in SUITES:
            names = {host + suffix, release + suffix} | ({alias + suffix for alias in _ALIASES})
            if source.suite in names:
                new = Source(source.uri, release + suffix, source.signed_by)
                if new not in carried:
                    carried.append(new)
    if not any(source.suite == release for source in carried):
        raise MissingError(
            f"apt on this machine has no archive of Debian {host} (main) to derive {release} from; "
            "name one with --apt-sources FILE (sources.list format)"
        )
    return carried


def apt_options(dump: str) -> str:
    """Take from `apt-config dump` what concerns fetching: proxies, certificates, retries, checks of dates."""
    kept = [
        line
        for line in dump.splitlines()
        if re.match(r"Acquire::(https?|ftp|Retries|Check-|ForceIPv|Max-|Queue-)", line) and not line.endswith('"";')
    ]
    return "\n".join(
        [*kept, 'Acquire::Languages "none";', 'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";']
    )


def _one_line(text: str) -> Iterator[Source]:
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if not re.match(r"deb\s", line):
            continue
        match = _OPTIONS.search(line)
        options = dict(pair.split("=", 1) for pair in match[1].split() if "=" in pair) if match else {}
        words = _OPTIONS.sub("", line).split()[1:]
        if len(words) >= 3 and "main" in words[2:]:
            yield Source(words[0].rstrip("/"), words[1], options.get("signed-by", ""))


def _deb822(text: str) -> Iterator[Source]:
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n\s*\n", uncommented):
        fields = {
            match[1].lower(): match[2].strip()
            for match in re.finditer(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t]+.*)*)", paragraph, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or "main" not in fields.get("components", "").split():
            continue
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        signed_by = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri.rstrip("/"), suite, signed_by if signed_by.startswith("/") else "")


def _is_debian(uri: str) -> bool:
    """Mirrors of Debian end so; archives of others that also have a component main do not."""
    return uri.rsplit("/", 1)[-1] in {"debian", "debian-security"}
