"""Checks of what a configuration names and a gateway can do without for a while: models, video files."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from gateway.config import CameraSource
from gateway.configload.crosscheck import Scope
from gateway.configload.problems import Problem
from gateway.errors import ModelError
from gateway.inference.bundle import ReleaseStore
from gateway.ota.effective import awaiting_pipelines, effective_models
from gateway.wire.manifest import Classification, Detection, ModelManifest

BRINGS: Final = "`cloud-bridge rollout create`, or `gateway ota install` on the device, brings it"


def check_inventory(scope: Scope) -> Iterator[Problem]:
    """Report models and video files that are not there, and rules for labels that a model never gives."""
    yield from _videos(scope)
    yield from _releases(scope)


def _videos(scope: Scope) -> Iterator[Problem]:
    for name, source in scope.config.sources.items():
        if not isinstance(source, CameraSource) or source.device.startswith("/dev/") or "://" in source.device:
            continue
        if not Path(source.device).is_file():
            message = f"there is no device and no video file {source.device}"
            yield scope.error(f"sources.{name}.device", message, "name a file, a /dev/video…, or an address")


def _releases(scope: Scope) -> Iterator[Problem]:
    releases = ReleaseStore(scope.config.models.directories, sealed=scope.config.gateway.state_directory / "models")
    names = sorted({release.name for release in releases.releases()})
    effective = effective_models(scope.config, releases)
    awaiting = awaiting_pipelines(scope.config, releases)
    for name, pipeline in scope.config.pipelines.items():
        path = f"pipelines.{name}"
        if name in awaiting:
            meant = get_close_matches(pipeline.model.partition("@")[0], names, 1)
            meant = [] if meant == [pipeline.model.partition("@")[0]] else meant
            message = f"no release of `{pipeline.model}` that may run is here: the pipeline waits for one over the air"
            yield scope.warning(
                f"{path}.model",
                message,
                f"did you mean `{meant[0]}`? {BRINGS}" if meant else BRINGS,
            )
            continue
        try:
            manifest = releases.find(effective[name]).manifest
        except ModelError as error:
            meant = get_close_matches(pipeline.model.partition("@")[0], names, 1)
            first = str(error).partition(". ")[0]
            yield scope.error(f"{path}.model", first, f"did you mean `{meant[0]}`?" if meant else "install it first")
            continue
        known = labels_of(manifest)
        if not scope.entire(f"{path}.rules", pipeline.rules):
            continue
        for at, rule in enumerate(pipeline.rules):
            for place, label in enumerate(rule.labels or ()):
                if label not in known:
                    meant = get_close_matches(label, known, 1)
                    message = f"{manifest.name} {manifest.version} never says `{label}`, so the rule never fires for it"
                    remedy = f"did you mean `{meant[0]}`?" if meant else f"it knows {', '.join(sorted(known - {''}))}"
                    # A list may name more than the model of today tells apart; a rule that knows none never fires.
                    told = scope.warning if known.intersection(rule.labels or ()) else scope.error
                    yield told(f"{path}.rules[{at}].labels[{place}]", message, remedy)


def labels_of(manifest: ModelManifest) -> set[str]:
    """Return everything a model may say."""
    output = manifest.output
    return set(output.labels) if isinstance(output, Classification | Detection) else {output.label}
