"""Checks of the releases that the pipelines name."""

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from gateway.config import Config
from gateway.configload.inventory import BRINGS, labels_of
from gateway.doctor.diagnosis import Diagnosis
from gateway.errors import ModelError
from gateway.inference.bundle import Release, ReleaseStore
from gateway.ota.effective import awaiting_pipelines, effective_models
from gateway.vault.errors import DamagedContainerError, VaultError
from gateway.vault.store import ReleaseDirectory, read_release
from gateway.vault.weights import header_of, require_size
from gateway.wire.manifest import OVER_THE_AIR_FILE, Artefact


def check_models(config: Config) -> Iterator[Diagnosis]:
    """Find the release that each pipeline really runs, and compare its files with their digests."""
    releases = ReleaseStore(config.models.directories, sealed=sealed_directory(config))
    awaiting = awaiting_pipelines(config, releases)
    for name in sorted(awaiting):
        found = f"no release that may run is here: pipeline {name} waits for one over the air"
        yield Diagnosis(f"model {config.pipelines[name].model}", "warning", found, BRINGS)
    effective = {name: model for name, model in effective_models(config, releases).items() if name not in awaiting}
    for wanted in sorted(set(effective.values())):
        check = f"model {wanted}"
        try:
            release = releases.find(wanted)
            found = verify(release)
        except ModelError as error:
            yield Diagnosis(check, "failed", str(error))
            continue
        targets = ", ".join(artefact.target for artefact in release.manifest.artefacts)
        yield Diagnosis(check, "ok", f"{release.label} for {targets}, {found}")
        running = [name for name, model in effective.items() if model == wanted]
        yield from check_labels(config, running, release)
    if not config.pipelines:
        yield Diagnosis("models", "skipped", "the configuration names no pipeline")


def check_labels(config: Config, running: Collection[str], release: Release) -> Iterator[Diagnosis]:
    """Find rules, of the pipelines that run a release, that ask for labels which it never gives.

    One that knows none of them never fires: that does not work. One of several is a warning: a list may be longer than
    what the model of today tells apart, as where it is to be replaced by a larger one.
    """
    known = labels_of(release.manifest)
    for name in running:
        for rule in config.pipelines[name].rules:
            asked = set(rule.labels or ())
            where = f"pipelines.{name}, rule {rule.name}"
            never = not asked & known
            for label in sorted(asked - known):
                meant = get_close_matches(label, known, 1)
                remedy = f"did you mean {meant[0]!r}?" if meant else f"it knows {', '.join(sorted(known - {''}))}"
                why = "so the rule never fires" if never else "so the rule never fires for it, though for others"
                yield Diagnosis(
                    where, "failed" if never else "warning", f"{release.label} never says {label!r}, {why}", remedy
                )


def verify(release: Release) -> str:
    """Compare all files of a release with its manifest; returns what was found, in words.

    Of sealed weights only what can be seen without the key: their size, and that they were sealed for this manifest.

    Raises:
        ModelError: a file is missing or is another one.
    """
    try:
        stored = read_release(release.directory)
        present = _present(stored)
        for golden in release.manifest.golden:
            if any(artefact.target == golden.target for artefact in present):
                release.read_golden(golden.input, golden.input_sha256)
                release.read_golden(golden.output, golden.output_sha256)
        sealed = all(stored.sealed_file(artefact).is_file() for artefact in present)
        for artefact in present:
            if sealed:
                check_sealed(stored, artefact)
            else:
                release.verify(artefact)
    except VaultError as error:
        raise ModelError(f"model {release.label}: {error}") from error
    if sealed:
        return "sealed, sizes right (what is inside shows when its key opens it); all other digests right"
    return "in clear, all digests right"


def _present(stored: ReleaseDirectory) -> Sequence[Artefact]:
    """Return the artefacts that must be there: of a release that came over the air, those that this device runs."""
    if (stored.directory / OVER_THE_AIR_FILE).exists():
        there = [artefact for artefact in stored.manifest.artefacts if stored.sealed_file(artefact).is_file()]
        return there or stored.manifest.artefacts
    return stored.manifest.artefacts


def is_sealed(release: Release) -> bool:
    """Tell whether the weights of a release lie sealed."""
    try:
        stored = read_release(release.directory)
    except VaultError:
        return False
    return all(stored.sealed_file(artefact).is_file() for artefact in _present(stored))


def check_sealed(stored: ReleaseDirectory, artefact: Artefact) -> None:
    """Compare what can be seen of a sealed artefact without the key.

    Raises:
        DamagedContainerError: it cannot be read, is cut short, or belongs to another release.
    """
    file = stored.sealed_file(artefact)
    header = header_of(file)
    if (header.release, header.file, header.sha256) != (stored.digest, artefact.file, artefact.sha256):
        raise DamagedContainerError(f"{file} belongs to another release: fetch the release again")
    if header.size_bytes != artefact.size_bytes:
        raise DamagedContainerError(f"{file} does not hold what the manifest says: fetch the release again")
    require_size(file)


def sealed_directory(config: Config) -> Path:
    """Return where the gateway keeps sealed releases."""
    return config.gateway.state_directory / "models"
