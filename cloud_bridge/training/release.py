"""A finished release, in memory and on disk: `<name>/<version>/` with its manifest, model, golden tensors and card."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_bridge.training.errors import TrainingError
from cloud_bridge.training.runner import Runner
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import MANIFEST_FILE, Artefact, Golden, ModelManifest, Quality, Target, read_manifest

CARD_FILE: Final = "CARD.md"
TARGET: Final[Target] = "cpu-int8"
KEPT: Final = 0.98
"""The share of the float model's quality that what ships must keep."""


@dataclass(frozen=True, slots=True)
class Release:
    """What is written to disk, or was read from it."""

    manifest: ModelManifest
    files: Mapping[str, bytes]

    @property
    def model(self) -> bytes:
        """The int8 file."""
        return self.files[self.artefact.file]

    @property
    def artefact(self) -> Artefact:
        """The manifest's entry for it."""
        artefact = self.manifest.artefact(TARGET)
        if artefact is None:
            raise TrainingError(f"{self.manifest.name} {self.manifest.version} has no artefact for {TARGET}")
        return artefact


def digest(content: bytes) -> str:
    """Return the SHA-256 as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def artefact_of(file: str, content: bytes) -> Artefact:
    """Describe a model file."""
    return Artefact(target=TARGET, file=file, sha256=digest(content), size_bytes=len(content))


def golden_of(
    model: bytes, named_rows: Mapping[str, NDArray[np.float32]], tolerance: float
) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    """Run inputs (1, …) through a model; return the manifest's entries and the files.

    Several outputs stand one behind the other, in the order of the graph.
    """
    runner = Runner(model)
    entries: list[Golden] = []
    contents: dict[str, bytes] = {}
    for name, row in named_rows.items():
        tensor, outputs = runner.raw(row)
        given, expected = _bytes([tensor]), _bytes(outputs)
        files = f"golden-{name}-input.bin", f"golden-{name}-output.bin"
        contents |= dict(zip(files, (given, expected), strict=True))
        entries.append(
            Golden(
                target=TARGET,
                input=files[0],
                output=files[1],
                input_sha256=digest(given),
                output_sha256=digest(expected),
                tolerance=tolerance,
            )
        )
    return tuple(entries), contents


def require_quality(figures: Iterable[Quality]) -> None:
    """Check that what ships keeps its share of the float model's quality.

    Only figures of which more is better are held to it; their names do not begin with "false".

    Raises:
        TrainingError: it does not.
    """
    for figure in figures:
        if figure.metric.startswith("false"):
            continue
        if figure.shipped_value < KEPT * figure.float_value:
            raise TrainingError(
                f"{figure.metric}: int8 has {figure.shipped_value:.4f}, float {figure.float_value:.4f}; "
                f"less than {KEPT:.0%} is left. Calibrate with samples that cover what must be told apart"
            )


def write(release: Release, directory: Path) -> Path:
    """Write a release below a directory; returns its own directory."""
    place = directory / release.manifest.name / release.manifest.version
    place.mkdir(parents=True, exist_ok=True)
    for name, content in release.files.items():
        (place / name).write_bytes(content)
    write_manifest(release.manifest, place)
    return place


def write_manifest(manifest: ModelManifest, place: Path) -> None:
    """Write a manifest into the directory of its release."""
    document = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (place / MANIFEST_FILE).write_bytes(document + b"\n")


def read(place: Path) -> Release:
    """Read a release and check every file against its manifest.

    Raises:
        TrainingError: a file is missing or is not the one of the manifest.
    """
    try:
        manifest = read_manifest((place / MANIFEST_FILE).read_bytes())
        wanted = {artefact.file: artefact.sha256 for artefact in manifest.artefacts}
        for golden in manifest.golden:
            wanted |= {golden.input: golden.input_sha256, golden.output: golden.output_sha256}
        files = {name: (place / name).read_bytes() for name in wanted}
    except OSError as error:
        raise TrainingError(f"{place}: {error.strerror}: {error.filename}; train the release again") from error
    except MalformedManifestError as error:
        raise TrainingError(f"{place}: {error}") from error
    wrong = [name for name, content in files.items() if digest(content) != wanted[name]]
    if wrong:
        raise TrainingError(f"{place}: {', '.join(wrong)}: not the file of the manifest; train the release again")
    return Release(manifest, files)


def check_golden(release: Release) -> None:
    """Run the golden inputs.

    Raises:
        TrainingError: an answer is further off than the manifest allows.
    """
    runner = Runner(release.model)
    for golden in release.manifest.golden:
        outputs = runner.from_bytes(release.files[golden.input])
        expected = release.files[golden.output]
        if len(_bytes(outputs)) != len(expected):
            raise TrainingError(f"{golden.output}: {len(expected)} bytes, the model answers {len(_bytes(outputs))}")
        at = 0
        for output in outputs:
            end = at + output.nbytes
            wanted = np.frombuffer(expected[at:end], output.dtype.newbyteorder("<")).reshape(output.shape)
            off = np.abs(output.astype(np.float64) - wanted.astype(np.float64)).max()
            if not off <= golden.tolerance:
                raise TrainingError(f"{golden.input}: the answer is off by {off:g}, {golden.tolerance:g} allowed")
            at = end


def _bytes(tensors: Sequence[NDArray[np.generic]]) -> bytes:
    return b"".join(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes() for tensor in tensors)
