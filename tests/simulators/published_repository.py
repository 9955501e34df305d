"""Releases as the bridge's registry publishes them, and one device's view of them by its own code.

`publish` lets a real registry sign, seal and make patches. `PublishedRepository` is what a device of the tests takes
for its repository: metadata and files are verified by the device's code; content keys come without an identity service.
"""

import hashlib
import json
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from gateway.config import Ota
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.fetch_offer import Offer, OfferedFile
from gateway.ota.ways import DirectoryWay, Way
from gateway.wire.manifest import Plain, WindowInput
from tests.cloud_bridge.registry.kit import Site
from tests.gateway.inference.graphs import dense
from tests.gateway.ota.releases import release
from tests.simulators.release_repository import ReleaseRepository

SAMPLES: Final = 1024
WINDOW: Final = WindowInput(samples=SAMPLES, hop_samples=SAMPLES, rate_hz=100.0, features=Plain())
HARDWARE: Final = "test-board"
_KEYS: Final = "content-keys.json"
_ROOT: Final = "root.json"
_SERVICES: Final = "services.pem"


def weights(bias: float) -> bytes:
    """Return a model of some kilobytes; two of them differ in a few bytes, so that a patch is worth while."""
    noise = np.random.default_rng(1).normal(size=(1, SAMPLES)).astype(np.float32)
    return dense(noise, np.full(1, bias, np.float32))


def answer(bias: float) -> float:
    """Return what the model answers to a window of ones."""
    return float(np.random.default_rng(1).normal(size=(1, SAMPLES)).astype(np.float32).sum()) + bias


def golden(bias: float) -> tuple[float, float]:
    """Return a golden input and its answer, for `tests.gateway.ota.releases.release`."""
    return 1.0, answer(bias)


def publish(directory: Path, releases: Mapping[str, float]) -> None:
    """Publish releases of the model `probe`, by version and bias, each with a patch from the one before."""
    made = directory / "made"
    folders = [
        release(made, version, weights(bias), golden=golden(bias), spec=WINDOW) for version, bias in releases.items()
    ]
    publish_releases(directory, folders)


def publish_releases(directory: Path, folders: Iterable[Path]) -> None:
    """Publish releases that lie in directories, in this order, with patches from those before."""
    site = Site(directory).begin()
    try:
        for folder in folders:
            site.publish(folder)
            site.running[folder.parent.name, folder.name] = 1
        keys = {key.digest: (key.release.replace("@", " "), key.key.hex()) for key in site.identities.keys.all()}
        (directory / _KEYS).write_text(json.dumps(keys))
        (directory / _ROOT).write_bytes(site.registry.read("metadata/1.root.json"))
        (directory / _SERVICES).write_bytes(site.identities.ca.services_pem)
    finally:
        site.db.close()


def bridge_settings(directory: Path, port: int) -> str:
    """Return what a bridge's configuration says that serves what was published, on loopback and to anybody."""
    return (
        f"identity: {{trust_domain: sluice.test, directory: {directory}/identity, port: 0}}\n"
        f"registry: {{url: {directory}/repository, keys: {directory}/keys, port: {port}, "
        "requests_per_minute: 1000000}\n"
    )


def trusting(directory: Path) -> ssl.SSLContext:
    """Return what a device believes of such a bridge."""
    return ssl.create_default_context(cafile=directory / _SERVICES)


def signed_digests(directory: Path) -> set[str]:
    """Return the digests of all files that are signed for."""
    files = (directory / "repository" / "targets").rglob("*.*")
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


class PublishedRepository(ReleaseRepository):
    """One device's repository; `state` is the device's state directory, `way` is a directory unless told otherwise."""

    def __init__(self, directory: Path, state: Path, way: Way | None = None) -> None:
        super().__init__(directory)
        for digest, (label, key) in json.loads((directory / _KEYS).read_bytes()).items():
            self.keys[digest] = bytes.fromhex(key)
            self.labels[digest] = label
        self.verified = Repository(
            Ota(root_file=directory / _ROOT, hardware=HARDWARE),
            state,
            way or DirectoryWay(directory / "repository"),
            meter=Unmetered(),
            now_ns=time.time_ns,
            monotonic_ns=time.monotonic_ns,
        )

    def refresh(self) -> None:
        """Verify what is published now."""
        self.verified.refresh()

    def offer(self, name: str, version: str) -> Offer:
        """Return what is signed for."""
        return self.verified.offer(name, version)

    def lacking(self, file: OfferedFile, to: Path) -> int:
        """Pass on."""
        return self.verified.lacking(file, to)

    def fetch(self, file: OfferedFile, to: Path, progress: Callable[[int], None] = lambda _count: None) -> Path:
        """Fetch and verify."""
        self.fetched.append(file.path)
        return self.verified.fetch(file, to, progress)

    def stop(self) -> None:
        """Pass on."""
        self.verified.stop()

    def resume(self) -> None:
        """Pass on."""
        self.verified.resume()
