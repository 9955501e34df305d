"""What the registry says about releases that are to be given out."""

import time
from collections.abc import Callable, Collection
from typing import Protocol

from cloud_bridge.config import Config
from cloud_bridge.identity.database import open_database
from cloud_bridge.identity.devices import list_devices
from cloud_bridge.osbundles.known import ModelsAndSystems
from cloud_bridge.osbundles.ledger import BundleEntry, BundleLedger
from cloud_bridge.registry.ledger import Ledger
from cloud_bridge.registry.release import ReleaseEntry
from cloud_bridge.registry.versions import version_key
from cloud_bridge.rollout.releases import Release, Releases, ReleaseState


class Entries(Protocol):
    """The part of the registry that is asked."""

    def find(self, name: str, version: str) -> ReleaseEntry | None:
        """Return one release."""
        ...

    def releases(self) -> list[ReleaseEntry]:
        """Return all releases, by name and ascending version."""
        ...


class RegisteredReleases:
    """Answers from the registry's tables."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def state_of(self, release: Release) -> ReleaseState:
        """Return what a release is now.

        Raises:
            StoreError: the tables cannot be read now.
        """
        entry = self._entries.find(release.name, release.version)
        if entry is None or entry.published_ns is None:
            return "unknown"
        # An offline key may not have signed the withdrawal yet: that it was asked for is enough.
        return "yanked" if entry.yanked_ns is not None or entry.yanked_why else entry.state

    def before(self, release: Release) -> Release | None:
        """Return the newest approved release of the same name with a lower version, None if there is none.

        Raises:
            StoreError: the tables cannot be read now.
        """
        highest = version_key(release.version)
        found = [
            Release(entry.name, entry.version)
            for entry in self._entries.releases()
            if entry.name == release.name and version_key(entry.version) < highest
        ]
        return next((one for one in reversed(found) if self.state_of(one) == "approved"), None)


class _Lazily:
    """Opens the tables when they are asked for the first time: a bridge starts without its database too."""

    def __init__(self, config: Config) -> None:
        assert config.identity is not None
        self._database = open_database(config.store, config.identity.home())
        self._ledger: Ledger | None = None
        self._bundles: BundleLedger | None = None

    def find(self, name: str, version: str) -> ReleaseEntry | None:
        return self._opened().find(name, version)

    def releases(self) -> list[ReleaseEntry]:
        return self._opened().releases()

    def bundles(self) -> list[BundleEntry]:
        if self._bundles is None:
            self._bundles = BundleLedger(self._database, time.time_ns)
        return self._bundles.bundles()

    def _opened(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger(self._database, time.time_ns)
        return self._ledger


def open_revoked(config: Config) -> Callable[[], Collection[str]]:
    """Return what asks for the devices that were revoked; none without identities.

    What it returns raises StoreError when the database cannot be read.

    Raises:
        ConfigError: the password file cannot be read.
    """
    if config.identity is None:
        return tuple
    database = open_database(config.store, config.identity.home())

    def revoked() -> Collection[str]:
        with database.transaction(durable=False) as tx:
            return [one.gateway for one in list_devices(tx) if one.revoked_ns is not None]

    return revoked


def open_releases(config: Config) -> Releases | None:
    """Return who knows the releases; None without a registry: then any release can be named.

    Raises:
        ConfigError: the password file cannot be read.
    """
    if config.registry is None or config.identity is None:
        return None
    tables = _Lazily(config)
    return ModelsAndSystems(RegisteredReleases(tables), tables)
