"""Checks of the releases that the pipelines name."""

from collections.abc import Iterator
from difflib import get_close_matches

from gateway.config import Config
from gateway.configload.inventory import labels_of
from gateway.doctor.diagnosis import Diagnosis
from gateway.errors import ModelError
from gateway.inference.bundle import Release, ReleaseStore


def check_models(config: Config) -> Iterator[Diagnosis]:
    """Find the release of each pipeline, and compare its files with their digests."""
    releases = ReleaseStore(config.models.directories)
    for wanted in sorted({pipeline.model for pipeline in config.pipelines.values()}):
        check = f"model {wanted}"
        try:
            release = releases.find(wanted)
            verify(release)
        except ModelError as error:
            yield Diagnosis(check, "failed", str(error))
            continue
        targets = ", ".join(artefact.target for artefact in release.manifest.artefacts)
        yield Diagnosis(check, "ok", f"{release.label} for {targets}, all digests right")
        yield from check_labels(config, wanted, release)
    if not config.pipelines:
        yield Diagnosis("models", "skipped", "the configuration names no pipeline")


def check_labels(config: Config, wanted: str, release: Release) -> Iterator[Diagnosis]:
    """Find rules that ask for a label which the model never gives: they would never fire."""
    known = labels_of(release.manifest)
    for name, pipeline in config.pipelines.items():
        if pipeline.model != wanted:
            continue
        for rule in pipeline.rules:
            for label in sorted(set(rule.labels or ()) - known):
                meant = get_close_matches(label, known, 1)
                remedy = f"did you mean {meant[0]!r}?" if meant else f"it knows {', '.join(sorted(known - {''}))}"
                where = f"pipelines.{name}, rule {rule.name}"
                yield Diagnosis(
                    where, "failed", f"{release.label} never says {label!r}, so the rule never fires", remedy
                )


def verify(release: Release) -> None:
    """Compare all files of a release with the digests in its manifest.

    Raises:
        ModelError: one is missing or is another file.
    """
    for artefact in release.manifest.artefacts:
        release.model_file(artefact)
    for golden in release.manifest.golden:
        release.read_golden(golden.input, golden.input_sha256)
        release.read_golden(golden.output, golden.output_sha256)
