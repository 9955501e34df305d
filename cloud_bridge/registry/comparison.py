"""What differs between two releases. Pure."""

from typing import Any

import msgspec

from cloud_bridge.registry.release import ReleaseEntry

_LISTED = ("summary", "input", "output", "constraints", "lineage")


def differences(old: ReleaseEntry, new: ReleaseEntry) -> dict[str, Any]:
    """Return what differs, for JSON: parts of the manifest as `[old, new]`, files, quality, bytes that travel.

    `travel` says for each target what a device fetches that has the old release: `{"full": bytes, "patch": bytes}`,
    the patch null where there is none, both 0 where the weights are the same.
    """
    return {
        "old": {"name": old.name, "version": old.version, "token": old.token},
        "new": {"name": new.name, "version": new.version, "token": new.token},
        "manifest": _parts(old, new),
        "quality": _quality(old, new),
        "travel": {artefact.target: _travel(old, new, artefact.target) for artefact in new.manifest.artefacts},
    }


def _parts(old: ReleaseEntry, new: ReleaseEntry) -> dict[str, list[Any]]:
    one, other = msgspec.to_builtins(old.manifest), msgspec.to_builtins(new.manifest)
    changed = {name: [one[name], other[name]] for name in _LISTED if one[name] != other[name]}
    if old.targets != new.targets:
        changed["targets"] = [list(old.targets), list(new.targets)]
    return changed


def _quality(old: ReleaseEntry, new: ReleaseEntry) -> dict[str, list[float | None]]:
    before = {figure.metric: figure.shipped_value for figure in old.manifest.quality}
    after = {figure.metric: figure.shipped_value for figure in new.manifest.quality}
    return {
        metric: [before.get(metric), after.get(metric)]
        for metric in sorted(before.keys() | after.keys())
        if before.get(metric) != after.get(metric)
    }


def _travel(old: ReleaseEntry, new: ReleaseEntry, target: str) -> dict[str, int | None]:
    has = next((one.sha256 for one in old.manifest.artefacts if one.target == target), "")
    wants = next(one.sha256 for one in new.manifest.artefacts if one.target == target)
    if has == wants:
        return {"full": 0, "patch": 0}
    full = patch = None
    for file in new.files:
        if file.custom.get("target") != target:
            continue
        if file.custom["kind"] == "artefact":
            full = file.size_bytes
        elif file.custom.get("base_sha256") == has:
            patch = file.size_bytes
    return {"full": full, "patch": patch}
