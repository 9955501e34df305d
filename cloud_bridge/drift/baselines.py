"""Where the baselines of releases come from: the registry, and directories with releases."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from cloud_bridge.config import Config
from cloud_bridge.store.opening import sqlite_path
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import MANIFEST_FILE, Baseline, ModelManifest, read_manifest

log = structlog.get_logger()

SHIPPED: Final = Path(__file__).resolve().parents[2] / "gateway" / "models"
"""The releases that come with the program."""

_HOME: Final = Path("/var/lib/sluice-bridge")
_RETRAINED: Final = "retrained"

FindManifest = Callable[[str, str], ModelManifest | None]
"""Finds the manifest of a release by name and version; blocks."""


def drift_directory(config: Config) -> Path:
    """Return where files of drift lie: as configured, or beside the store's file."""
    path = sqlite_path(config.store.url)
    return config.drift.directory or (path.parent if path is not None else _HOME)


def retrained_directory(config: Config) -> Path:
    """Return where releases are written that were trained again."""
    return drift_directory(config) / _RETRAINED


def directories_of(config: Config) -> list[Path]:
    """Return the directories in which releases lie in clear, those that were trained again first."""
    return [retrained_directory(config), *config.drift.releases, SHIPPED]


class Baselines:
    """Finds baselines, and remembers them: a release never changes."""

    def __init__(self, directories: Sequence[Path], registry: FindManifest | None = None) -> None:
        """Look into a registry first, then into directories `<name>/<version>/manifest.json`."""
        self._directories = tuple(directories)
        self._registry = registry
        self._unreadable: set[Path] = set()
        self._known: dict[tuple[str, str], Baseline | None] = {}

    def find(self, name: str, version: str) -> Baseline | None:
        """Return the baseline of a release, None if the release is not known or has none."""
        key = name, version
        if key not in self._known:
            manifest = self._manifest(name, version)
            if manifest is None:
                return None  # it may be published yet
            self._known[key] = manifest.baseline
        return self._known[key]

    def _manifest(self, name: str, version: str) -> ModelManifest | None:
        if Path(name).name != name or Path(version).name != version:
            return None  # as told by a device, and no name of a directory
        found = self._registry(name, version) if self._registry is not None else None
        if found is not None:
            return found
        for directory in self._directories:
            file = directory / name / version / MANIFEST_FILE
            try:
                return read_manifest(file.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, MalformedManifestError) as error:
                if file not in self._unreadable:
                    log.warning("drift_baseline_unreadable", file=str(file), error=str(error))
                self._unreadable.add(file)
        return None
