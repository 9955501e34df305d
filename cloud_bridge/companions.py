"""The databases beside a SQLite store, and the files that no copy of a database holds: what a backup must think of."""

from dataclasses import dataclass
from pathlib import Path

from cloud_bridge.config import Config
from cloud_bridge.drift.baselines import drift_directory, retrained_directory
from cloud_bridge.drift.schema import DRIFT
from cloud_bridge.drift.schema import FILE_NAME as DRIFT_FILE
from cloud_bridge.identity.database import FILE_NAME as IDENTITY_FILE
from cloud_bridge.identity.database import IDENTITY
from cloud_bridge.store.opening import sqlite_path
from cloud_bridge.twins.database import FILE_NAME as FLEET_FILE
from cloud_bridge.twins.database import FLEET


@dataclass(frozen=True, slots=True)
class Companion:
    """A database that is kept together with the store's."""

    name: str
    file: Path
    table: str  # that every such database has

    def beside(self, copy: Path) -> Path:
        """Return where its copy lies, beside that of the store."""
        return copy.with_name(f"{copy.name}.{self.name}.db")


def companions_of(config: Config) -> list[Companion]:
    """Return the databases that go with a store in a file: twins and rollouts, drift, identities with the registry."""
    store = sqlite_path(config.store.url)
    if store is None:
        return []
    found = [
        Companion(FLEET.name, store.parent / FLEET_FILE, f"{FLEET.name}_schema"),
        Companion(DRIFT.name, drift_directory(config) / DRIFT_FILE, f"{DRIFT.name}_schema"),
    ]
    if config.identity is not None:
        home = config.identity.home()
        found.append(Companion(IDENTITY.name, home / IDENTITY_FILE, f"{IDENTITY.name}_schema"))
    return found


def not_in_databases(config: Config) -> dict[Path, str]:
    """Return files that are needed besides, and what for; there are keys among them."""
    found: dict[Path, str] = {}
    if config.identity is not None:
        found[config.identity.home()] = "authorities, and the key that opens the content keys"
    if config.registry is not None:
        found[config.registry.keys] = "keys of the registry"
        if "://" not in config.registry.url:
            found[Path(config.registry.url)] = "the repository of releases"
    retrained = retrained_directory(config)
    if retrained.exists():
        found[retrained] = "releases that were trained again, in clear"
    return {path: what for path, what in found.items() if path.exists()}
