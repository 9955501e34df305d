"""What can be said of a release without running it. Pure; what needs a runtime is in `workshop`."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from cloud_bridge.registry.errors import Problem
from cloud_bridge.registry.release import ReleaseEntry
from cloud_bridge.registry.versions import version_key
from gateway.wire.manifest import MANIFEST_FILE, ModelManifest, Quality, Target

RUN_HERE: Final[tuple[Target, ...]] = ("cpu-int8", "cpu-int4", "cpu-float", "head", "tail")
"""Artefacts that any host can run; the others prove themselves on the device."""
_VERSION: Final = re.compile(r"[0-9A-Za-z.-]{1,64}")
"""Versions are parts of paths and of the names of patches, and of what devices may ask for."""
_LONG_NUMBER: Final = re.compile(r"\d{19}")
"""Beyond what programs count with: a typing error."""
_LESS_IS_BETTER: Final = ("false", "error", "loss", "latency", "mse", "mae", "rmse")


def check_manifest(manifest: ModelManifest, min_quality_share: float) -> list[Problem]:
    """Find what a release lacks."""
    return [
        *_quality(manifest.quality, min_quality_share),
        *_golden(manifest),
        *_names(manifest),
        *_spelling(manifest),
    ]


def in_order(
    name: str, releases: Iterable[ReleaseEntry], running: Collection[tuple[str, str]] = ()
) -> list[ReleaseEntry]:
    """Return the releases of a name that a new one must follow: what devices can install, or run.

    One that was taken back and that no device runs is none of them: else a typing error in a version would close the
    name for ever. What devices follow is the token, which rises with each release whatever its version.
    """
    found = [one for one in releases if one.name == name and one.published_ns is not None]
    return [one for one in found if one.is_offered or (name, one.version) in running]


def check_version(
    manifest: ModelManifest, releases: Iterable[ReleaseEntry], running: Collection[tuple[str, str]] = ()
) -> list[Problem]:
    """Find a release of the same name, which devices can install or run, whose version is not lower."""
    before = in_order(manifest.name, releases, running)
    newest = max(before, key=lambda one: version_key(one.version), default=None)
    if newest is None or version_key(manifest.version) > version_key(newest.version):
        return []
    return [
        Problem(
            "version",
            f"{MANIFEST_FILE}, version",
            f"{manifest.version} does not follow {newest.version}, which "
            + ("is published" if newest.is_offered else "was taken back, but runs on devices"),
            "give it a higher version; to have devices run an older release, make a rollout of that one"
            + (
                f"; was {newest.version} a typing error, `cloud-bridge model yank {newest.name}@{newest.version}` "
                "takes it out of the order, unless a device runs it"
                if newest.is_offered
                else ""
            ),
        )
    ]


def worse_is_less(figure: Quality) -> bool:
    """Tell whether more of a figure is better; by its name, as recipes have it."""
    return not figure.metric.lower().startswith(_LESS_IS_BETTER)


def _quality(figures: Sequence[Quality], share: float) -> list[Problem]:
    if not figures:
        return [
            Problem(
                "no-quality",
                f"{MANIFEST_FILE}, quality",
                "it says nothing about how good the float model and the shipped one are",
                "judge both on a held-back split, and write the figures there",
                acceptable=True,
            )
        ]
    return [
        Problem(
            "quality",
            f"{MANIFEST_FILE}, quality, {figure.metric}",
            f"the shipped model has {figure.shipped_value:g}, the float one {figure.float_value:g}: "
            f"{_share(figure):.1%}, and {share:.1%} is wanted",
            "calibrate with samples that cover what must be told apart, or ship a wider type; "
            "see registry.min_quality_share",
            acceptable=True,
        )
        for figure in figures
        # A NaN is never enough.
        if worse_is_less(figure) and not figure.shipped_value >= share * figure.float_value
    ]


def _share(figure: Quality) -> float:
    return figure.shipped_value / figure.float_value if figure.float_value else 0.0


def _golden(manifest: ModelManifest) -> list[Problem]:
    proven = {golden.target for golden in manifest.golden}
    return [
        Problem(
            "no-golden",
            artefact.file,
            f"no golden input shows that {artefact.target} answers as it should",
            "run an input through it where it was made, and name input and output under `golden`",
            acceptable=True,
        )
        for artefact in manifest.artefacts
        if artefact.target not in proven
    ]


def _names(manifest: ModelManifest) -> list[Problem]:
    """Find files that would overwrite each other, where they lie in clear or as they are published."""
    artefacts = [artefact.file for artefact in manifest.artefacts]
    golden = {name for one in manifest.golden for name in (one.input, one.output)}
    # A compressed file travels under its own name, but is packed and sealed under that with `.zst`.
    taken = Counter(name + end for name in artefacts for end in ("", ".zst", ".sealed", ".zst.sealed"))
    taken.update({*golden, MANIFEST_FILE})
    patches = tuple(f"{name}.from-" for name in artefacts)
    twice = {name for name, count in taken.items() if count > 1}
    twice |= {name for name in (*artefacts, *golden) if name.startswith(patches)}
    return [
        Problem("name-twice", name, "two parts of the release have this file name", "rename one of them")
        for name in sorted(twice)
    ]


def _spelling(manifest: ModelManifest) -> list[Problem]:
    """Find a version under which nothing could be fetched."""
    if _VERSION.fullmatch(manifest.version) and not _LONG_NUMBER.search(manifest.version):
        return []
    return [
        Problem(
            "version",
            f"{MANIFEST_FILE}, version",
            f"{manifest.version[:80]!r} is no name of a file that devices ask for",
            "write it with 0-9, A-Z, a-z, points and hyphens, 64 characters at most, in its numbers 18 digits",
        )
    ]
