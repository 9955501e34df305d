"""Order of semantic versions (§11). Pure."""

VersionKey = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]


def version_key(version: str) -> VersionKey:
    """Return a key to sort by, of a version that matches `gateway.wire.manifest.SemanticVersion`."""
    release, _, pre = version.partition("-")
    major, minor, patch = (int(part) for part in release.split("."))
    parts = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in pre.split(".") if part)
    return major, minor, patch, not parts, parts
