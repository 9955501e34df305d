"""What the registry knows of images of the system, for rollouts."""

from typing import Protocol

from cloud_bridge.osbundles.ledger import BundleEntry
from cloud_bridge.registry.versions import version_key
from cloud_bridge.rollout.releases import Release, Releases, ReleaseState


class Bundles(Protocol):
    """The part of the ledger that is asked."""

    def bundles(self) -> list[BundleEntry]:
        """Return all, by what they are for and ascending version."""
        ...


class ModelsAndSystems:
    """Answers for both: a release is of the system if a bundle is for a device of its name."""

    def __init__(self, models: Releases, bundles: Bundles) -> None:
        self._models = models
        self._bundles = bundles

    def state_of(self, release: Release) -> ReleaseState:
        """Return what a release is now. Raises StoreError."""
        bundles = self._for(release)
        if not bundles:
            return self._models.state_of(release)
        found = next((one for one in bundles if one.version == release.version), None)
        if found is None or found.published_ns is None:
            return "unknown"
        return "yanked" if found.yanked_ns is not None or found.yanked_why else "approved"

    def before(self, release: Release) -> Release | None:
        """Return the newest release before one that can still be given out. Raises StoreError."""
        bundles = self._for(release)
        if not bundles:
            return self._models.before(release)
        older = [one for one in bundles if version_key(one.version) < version_key(release.version)]
        return next((Release(one.compatible, one.version) for one in reversed(older) if one.state == "published"), None)

    def _for(self, release: Release) -> list[BundleEntry]:
        return [one for one in self._bundles.bundles() if one.compatible == release.name]
