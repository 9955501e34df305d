"""A registry with knobs, releases to publish, and a TUF client that is not ours: python-tuf's."""

import hashlib
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from cloud_bridge.config import Identity
from cloud_bridge.config import Registry as Settings
from cloud_bridge.identity.component import Identities
from cloud_bridge.identity.contentkeys import ContentKeys
from cloud_bridge.identity.database import Database, SqliteDatabase
from cloud_bridge.identity.issuer import LocalCa, utc
from cloud_bridge.registry import ceremony
from cloud_bridge.registry.errors import NotFoundError
from cloud_bridge.registry.publishing import Publication, Wishes
from cloud_bridge.registry.registry import Registry
from cloud_bridge.registry.storage import Storage
from tests.simulators.releases import write_release
from tests.simulators.workshop import WorkshopSimulator

DAY = 86_400.0
RUNS = dict[tuple[str, str], int]


@dataclass
class Clock:
    """Begins now, because a TUF client looks at the machine's clock; moved by hand."""

    now_ns: int = field(default_factory=time.time_ns)

    def __call__(self) -> int:
        return self.now_ns

    def pass_days(self, days: float) -> None:
        self.now_ns += int(days * DAY * 1e9)


@dataclass
class Site:
    """A bridge's registry. Knobs: `knobs` of the settings, `storage`, `workshop`, `running`."""

    directory: Path
    knobs: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    workshop: WorkshopSimulator = field(default_factory=WorkshopSimulator)
    running: RUNS = field(default_factory=dict)
    storage: Storage | None = None
    database: Database | None = None

    def __post_init__(self) -> None:
        directory = self.directory
        settings = {"url": str(directory / "repository"), "keys": str(directory / "keys"), **self.knobs}
        self.settings = msgspec.convert(settings, Settings, dec_hook=lambda kind, value: kind(value))
        home = directory / "identity"
        self.db = self.database or SqliteDatabase(home / "identity.db")
        keys = ContentKeys(self.db, home / "content-keys.key", lease_seconds=DAY, clock=self.clock)
        ca = LocalCa.open(home, "sluice.test", utc(self.clock()))
        identity = Identity(trust_domain="sluice.test", directory=home)
        self.identities = Identities(identity, self.db, ca, ca, keys, self.clock)
        self.registry = Registry(
            self.settings,
            self.identities,
            clock=self.clock,
            running=lambda: self.running,
            workshop=self.workshop,
            storage=self.storage,
        )

    def begin(self, **answers: Any) -> "Site":
        beginning = ceremony.Beginning(**{"root_directory": self.registry.keys.root, **answers})
        ceremony.initialise(self.registry, beginning, self.clock)
        return self

    def publish(self, release: Path, **wishes: Any) -> Publication:
        accept = frozenset({"no-golden", "no-quality"}) | wishes.pop("accept", frozenset())
        return self.registry.publication(release, Wishes(accept=accept, **wishes))

    def root_keys(self) -> list[Path]:
        return sorted(self.registry.keys.root.glob("*.pem"))


def weights(seed: int, changed_share: float = 0.0, size: int = 60_000) -> bytes:
    """Bytes like those of a quantized model; `changed_share` of them, at the end, differ from the same seed's."""
    draw = random.Random(seed)
    content = bytearray(round(draw.gauss(0, 30)) % 256 for _ in range(size))
    for at in range(round(size * (1 - changed_share)), size):
        content[at] = (content[at] + draw.choice((1, 2, 255))) % 256
    return bytes(content)


def release(
    directory: Path, version: str = "1.0.0", content: bytes | None = None, name: str = "detector", **parts: Any
) -> Path:
    """Write a release whose artefact is any bytes."""
    return write_release(directory / "made", name, version, weights(1) if content is None else content, **parts)


class _Fetcher(FetcherInterface):
    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def _fetch(self, url: str) -> Any:
        try:
            return iter([self.storage.read(url.removeprefix("https://r/"))])
        except NotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from error


def client(directory: Path, storage: Storage, root: bytes) -> Updater:
    """A client that has refreshed; its memory is in `directory`."""
    for each in (directory / "metadata", directory / "files"):
        each.mkdir(parents=True, exist_ok=True)
    updater = Updater(
        str(directory / "metadata"),
        "https://r/metadata/",
        str(directory / "files"),
        "https://r/targets/",
        fetcher=_Fetcher(storage),
        config=UpdaterConfig(prefix_targets_with_hash=True),
        bootstrap=root,
    )
    updater.refresh()
    return updater


def listed(updater: Updater) -> dict[str, Any]:
    """What the client may install: `custom` by path."""
    targets = updater._trusted_set.targets.targets
    return {path: target.unrecognized_fields.get("custom") for path, target in targets.items()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
