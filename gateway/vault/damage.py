"""What is wrong with a sealed release, as far as that shows without its key. Reads, and changes nothing.

A release in the store is whole when its manifest can be read and belongs where it lies, when each container was sealed
for that very manifest, and when the golden inputs have the digests that it names. Whether a container is whole inside
shows when it is opened.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from gateway.statefiles import is_passing
from gateway.vault.errors import DamagedContainerError, VaultError
from gateway.vault.store import SEALED_SUFFIX, ReleaseDirectory, read_release
from gateway.vault.weights import header_of, require_size
from gateway.wire.manifest import OVER_THE_AIR_FILE, Artefact


def damage_of(directory: Path) -> str:
    """Say what is wrong with a sealed release, "" if nothing is.

    Raises:
        VaultError: it cannot be looked at now.
    """
    try:
        release = read_release(directory)
    except VaultError as error:
        if is_passing(error.__cause__):
            raise
        return str(error)
    if (release.manifest.name, release.manifest.version) != (directory.parent.name, directory.name):
        return f"{directory} holds the manifest of {release.label}"
    if not any(
        release.sealed_file(each).exists() or (directory / each.file).exists() for each in release.manifest.artefacts
    ):
        return f"{directory} has none of the weights that its manifest names"
    return next(filter(None, (_damage_of_artefact(release, each) for each in release.manifest.artefacts)), "") or next(
        _damaged_golden(release), ""
    )


def names_of(directory: Path) -> frozenset[str]:
    """Return the digests that a damaged release in a directory may have: what its manifest has, and its containers say.

    Empty where nothing readable tells.
    """
    found = set()
    for container in directory.glob(f"*{SEALED_SUFFIX}"):
        with contextlib.suppress(DamagedContainerError):
            found.add(header_of(container).release)
    with contextlib.suppress(VaultError):
        found.add(read_release(directory).digest)
    return frozenset(found)


def _damage_of_artefact(release: ReleaseDirectory, artefact: Artefact) -> str:
    file = release.sealed_file(artefact)
    if not file.exists():
        # Of what came over the air only what this device runs is here; and what lies in clear a person has put there.
        expected = not (release.directory / OVER_THE_AIR_FILE).exists() and not file.with_suffix("").exists()
        return f"{file} is missing" if expected else ""
    try:
        header = header_of(file)
        require_size(file)
    except VaultError as error:
        if is_passing(error.__cause__):
            raise
        return str(error)
    if header.release != release.digest:
        return f"{file} was sealed for another manifest than the one beside it"
    return ""


def _damaged_golden(release: ReleaseDirectory) -> Iterator[str]:
    """Yield what is wrong with golden files, each told once; those of artefacts that are not here may be missing."""
    here = {each.target for each in release.manifest.artefacts if release.sealed_file(each).exists()}
    wanted: dict[str, str] = {}
    for golden in release.manifest.golden:
        if golden.target in here:
            wanted |= {golden.input: golden.input_sha256, golden.output: golden.output_sha256}
    for name, sha256 in wanted.items():
        file = release.directory / name
        try:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            if is_passing(error):
                raise VaultError(f"{file} cannot be read now: {error.strerror}") from error
            yield f"{file} cannot be read: {error.strerror or error}"
            continue
        if found != sha256:
            yield f"{file} is not the file of this release"
