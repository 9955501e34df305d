"""Releases that can be trained again: those that are published, and those that lie in clear on the bridge."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloud_bridge.errors import ConfigError
from cloud_bridge.registry.registry import Registry
from cloud_bridge.registry.release import ReleaseEntry
from cloud_bridge.registry.versions import version_key
from cloud_bridge.training import release
from cloud_bridge.training.retrain import next_version
from gateway.wire.manifest import MANIFEST_FILE, ModelManifest, SemanticVersion


class Parents:
    """Finds releases by name and version. What is published counts before what lies in a directory."""

    def __init__(self, directories: Sequence[Path], registry: Registry | None = None) -> None:
        """Take where releases `<name>/<version>` lie in clear, and the registry, if there is one."""
        self._directories = tuple(directories)
        self._registry = registry

    def manifest(self, name: str, version: str | None = None) -> ModelManifest:
        """Return the manifest of a release, by default of the newest that is published; raises as `release`."""
        entry = self._published(name, version)
        return entry.manifest if entry is not None else release.read(self._place(name, version)).manifest

    def release(self, name: str, version: str | None = None) -> release.Release:
        """Return a release with its files, by default the newest that is published.

        Raises:
            ConfigError: there is none.
            TrainingError: one in a directory is not what its manifest says.
            RegistryError, IdentityError, StorageError: one of the registry is not what was signed, or cannot be opened.
        """
        entry = self._published(name, version)
        if entry is None or self._registry is None:
            return release.read(self._place(name, version))
        with self._registry.in_clear(entry) as place:
            return release.read(place)

    def version(self, parent: ModelManifest, wanted: str | None = None) -> str:
        """Return the version of a successor: the wanted one, or the next patch version that is free.

        That is above its parent and above all that a new release must follow.

        Raises:
            ConfigError: the wanted one is no version.
        """
        if wanted is not None:
            try:
                return msgspec.convert(wanted, SemanticVersion)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{wanted!r}: no semantic version, such as 1.2.3") from error
        taken = {place.name for base in self._directories for place in (base / parent.name).glob("*")}
        published: list[str] = []
        if self._registry is not None:
            published = [one.version for one in self._registry.in_order(parent.name)]
            known = [*self._registry.releases(), *self._registry.unsigned()]
            taken |= {one.version for one in known if one.name == parent.name}
        return next_version(max([parent.version, *published], key=version_key), frozenset(taken))

    def require_publishable(self, parent: ModelManifest, version: str) -> None:
        """Check that the registry, if there is one, would take this version, before hours are spent on it.

        Raises:
            RefusedReleaseError: it would not.
            RegistryError, StorageError: nothing can be published now.
        """
        if self._registry is not None:
            self._registry.require_next(msgspec.structs.replace(parent, version=version))

    def _published(self, name: str, version: str | None) -> ReleaseEntry | None:
        """Return a release that devices can install."""
        if self._registry is None:
            return None
        if version is None:
            return self._registry.newest(name)
        offered = [one for one in self._registry.releases() if one.is_offered]
        return next((one for one in offered if (one.name, one.version) == (name, version)), None)

    def _place(self, name: str, version: str | None) -> Path:
        """Return the directory of a release in clear, by default of the newest."""
        if not name or Path(name).name != name or (version is not None and Path(version).name != version):
            raise ConfigError(f"{name!r} {version or ''}: no name of a release")
        versions = [place for base in self._directories for place in (base / name).glob("*")]
        found = [place for place in versions if (place / MANIFEST_FILE).is_file()]
        chosen = [place for place in found if version is None or place.name == version]
        if not chosen:
            where = "is not published, and " if self._registry is not None else ""
            looked = ", ".join(map(str, self._directories))
            raise ConfigError(
                f"{name} {version or ''} {where}lies in none of {looked}; `cloud-bridge model list` shows what is "
                "published, `drift.releases` names directories of others"
            )
        return max(chosen, key=lambda place: _order(place.name))


def _order(version: str) -> tuple[int, ...]:
    """Sort directories, whatever they are called."""
    numbers = version.partition("-")[0].split(".")
    return tuple(int(number) if number.isdecimal() else 0 for number in numbers)
