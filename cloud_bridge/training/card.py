"""Writes a model card: what a person should know before trusting a release."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.wire.manifest import ModelManifest, Quality, Reconstruction, WindowInput


@dataclass(frozen=True, slots=True)
class Prose:
    """What no figure says; paragraphs and points of Markdown."""

    what: str
    use: str
    data: str
    training: str
    limits: Sequence[str]
    beside: str = ""  # further figures, with their conditions
    reproduce: str = ""


def card(manifest: ModelManifest, prose: Prose) -> bytes:
    """Build the Markdown of the card."""
    parts = [
        f"# {manifest.name} {manifest.version}",
        prose.what,
        "## Use",
        prose.use,
        _facts(manifest),
        "## Data",
        prose.data,
        "## Training and quantization",
        prose.training,
        "## Quality on data held back",
        _table(manifest.quality),
    ]
    if prose.beside:
        parts += ["## Beside it", prose.beside]
    parts += ["## Limits", "\n".join(f"* {limit}" for limit in prose.limits)]
    if prose.reproduce:
        parts += ["## Reproduce", prose.reproduce]
    return ("\n\n".join(parts) + "\n").encode()


def _facts(manifest: ModelManifest) -> str:
    (artefact, *_) = manifest.artefacts
    lines = [
        f"* file: `{artefact.file}`, {artefact.size_bytes:,} bytes, full int8 (weights, activations, input, output)",
        f"* SHA-256: `{artefact.sha256}`",
    ]
    if isinstance(manifest.input, WindowInput):
        window = manifest.input
        lines.append(
            f"* input: windows of {window.samples} samples, a new one every {window.hop_samples}, "
            + ("each channel by itself" if window.per_channel else f"{window.channels} channels")
        )
    if isinstance(manifest.output, Reconstruction):
        kind = {"mse": "mean squared difference", "mae": "mean difference", "max": "largest difference"}
        how = kind[manifest.output.error]
        lines.append(f"* output: what a healthy source would show; the score is the {how} to what is seen")
        lines.append(f"* threshold: {manifest.output.threshold:g}")
    if manifest.lineage:
        lines.append(f"* licence: {manifest.lineage.licence}")
    return "\n".join(lines)


def _table(figures: Sequence[Quality]) -> str:
    blocks = []
    for split in dict.fromkeys(figure.split for figure in figures):
        rows = [f"Split: {split}.", "", "| figure | float | int8, as shipped |", "| --- | --- | --- |"]
        rows += [f"| {q.metric} | {q.float_value:.4f} | {q.shipped_value:.4f} |" for q in figures if q.split == split]
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)
