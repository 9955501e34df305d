"""A device whose system is updated: a machine with two slots, the agent with its real parts, a real registry."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from cloud_bridge.osbundles.publishing import BundleShelf
from gateway.config import Os, Ota
from gateway.osupdate.agent import OsAgent
from gateway.osupdate.around import Around
from gateway.osupdate.bundles import RepositoryBundles
from gateway.osupdate.figures import OsMetrics
from gateway.osupdate.journal import Book, Journal
from gateway.osupdate.levers import RequestedLevers, carry_out
from gateway.osupdate.rauc import RaucCli
from gateway.osupdate.release import read_release
from gateway.osupdate.surroundings import read_health
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Spend, Unmetered
from gateway.ota.ways import DirectoryWay, Way
from gateway.wire.messages import Assignment, ModelRef, Twin, UpdateState, os_pipeline
from tests.cloud_bridge.registry.kit import Site
from tests.simulators.os_bundle import Signer, bundle
from tests.simulators.rauc import Machine

COMPATIBLE = "sluice-uefi-amd64"


@dataclass
class Vendor:
    """Who builds and publishes images."""

    directory: Path
    signer: Signer = field(default_factory=Signer.make)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.keyring = self.signer.keyring(self.directory / "keyring.pem")
        self.site = Site(self.directory / "site").begin()
        identities = self.site.identities
        self.shelf = BundleShelf(
            self.site.registry.repository, self.site.registry.ledger, identities.database, self.site.clock
        )

    def build(self, version: str, **parts: object) -> Path:
        """Make a bundle."""
        return bundle(self.directory / f"{version}.raucb", **{"signer": self.signer, "version": version, **parts})  # type: ignore[arg-type]

    def publish(self, version: str, **parts: object) -> Path:
        """Make and publish one."""
        file = self.build(version, **parts)
        self.shelf.publish(file)
        return file


@dataclass
class Device:
    """Knobs: `settings`, `window_open`, `flushed`, `counter`, `approval`, `outgrown`, `restarts_work`, `way`."""

    directory: Path
    vendor: Vendor
    settings: Os = field(default_factory=lambda: Os(media="off"))
    version: str = "1.0.0"
    floor: str = ""
    window_open: bool = True
    flushed: bool = True
    counter: int | None = None
    approval: str = ""
    outgrown: dict[str, str] = field(default_factory=dict)  # by slot
    restarts_work: bool = True
    way: Way | None = None
    meter: Spend = field(default_factory=Unmetered)
    journal_of: Callable[[Path], Journal] = Journal
    now: float = 1000.0
    token: int = 0
    notes: list[tuple[str, str]] = field(default_factory=list)
    heard: list[UpdateState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.directory / "state"
        self.runtime = self.directory / "run"
        self.runtime.mkdir(parents=True)
        self.machine = Machine.make(
            self.directory / "machine",
            compatible=COMPATIBLE,
            version=self.version,
            floor=self.floor,
            keyring=self.vendor.keyring,
        )
        self.health_file = self.state / "health.json"
        self.restarting = self.directory / "restarting"
        self.numbers = 0
        self.start()

    # ---- the program --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a new run of the gateway, with nothing but what is on the disk."""
        self.restarting.unlink(missing_ok=True)
        site = self.vendor.site
        root_file = self.directory / "root.json"
        root_file.write_bytes(site.registry.read("metadata/1.root.json"))
        way = self.way or DirectoryWay(Path(site.settings.url))
        repository = Repository(
            Ota(root_file=root_file),
            self.state,
            way,
            meter=self.meter,
            now_ns=time.time_ns,
            monotonic_ns=time.monotonic_ns,
        )
        self.registry = CollectorRegistry()
        self.agent = OsAgent(
            self.settings,
            self.journal_of(self.state),
            RaucCli(self.machine.command),
            RepositoryBundles(repository, way, self.meter, self.state / "os" / "bundles"),
            RequestedLevers(
                self.runtime, number=self._number, answer_seconds=5.0, wait=self._root, monotonic=time.monotonic
            ),
            around=Around(
                boot_id=self.machine.boot_id,
                release=read_release(self.machine.release_file),
                health=lambda: read_health(self.health_file),
                flushed=lambda: self.flushed,
                window_open=lambda: self.window_open,
                counter=lambda: self.counter,
                approval=lambda _slot, _pcr11: self.approval,
                outgrown=lambda slot: self.outgrown.get(slot, ""),
                connects=lambda: 1,
                note=lambda code, _severity, words: self.notes.append((code, words)),
                metrics=OsMetrics(self.registry),
                monotonic=lambda: self.now,
                draw=lambda: 1.0,
            ),
        )

    def _number(self) -> str:
        self.numbers += 1
        return str(self.numbers)

    def _root(self, _seconds: float) -> None:
        """Be the path unit."""
        restart = [sys.executable, "-c", f"open({str(self.restarting)!r}, 'w')"] if self.restarts_work else ["false"]
        carry_out(self.runtime, rauc=self.machine.command, restart=restart)

    # ---- what happens to it -------------------------------------------------------------------------------

    def want(self, version: str | None, compatible: str = COMPATIBLE, token: int | None = None) -> None:
        """Hand over a desired twin, as the model updates do once its fence was looked at."""
        self.token = self.token + 1 if token is None else token
        model = ModelRef(name=compatible, version=version or "")
        wanted = [Assignment(pipeline=os_pipeline(compatible), model=model, kind="os")] if version else []
        self.agent.wish(Twin(version=self.token, fencing_token=self.token, at="", assignments=wanted))

    def tick(self, seconds: float = 10.0) -> None:
        """Let time pass, and the agent take a step."""
        self.now += seconds
        self.agent.tick()
        told = self.told
        if told is not None and (not self.heard or self.heard[-1] != told):
            self.heard.append(told)

    def until(self, done: Callable[[], bool], seconds: float = 10.0, most: int = 80) -> None:
        """Go on until something is so."""
        for _ in range(most):
            if done():
                return
            self.tick(seconds)
        raise AssertionError(f"not so after {most} steps: {self.book.job} {self.told}")

    def restart(self) -> str:
        """Restart the device; returns the slot that runs then."""
        slot = self.machine.boot(self.health_file)
        self.start()
        return slot

    def install(self) -> None:
        """Go on until the device is to be restarted."""
        self.until(self.restarting.exists)

    def update(self) -> None:
        """Go on until everything is over, restarting and blessing as needed."""
        self.tick()
        for _ in range(6):
            self.until(lambda: self.book.job is None or self.restarting.exists() or self.phase == "trial")
            if self.book.job is None:
                return
            if self.restarting.exists():
                self.restart()
            else:
                self.machine.bless(self.health_file)
                self.tick()

    # ---- what can be seen ---------------------------------------------------------------------------------

    @property
    def book(self) -> Book:
        """The journal."""
        return self.agent._journal.book

    @property
    def told(self) -> UpdateState | None:
        """The last word."""
        return self.book.told

    @property
    def phase(self) -> str:
        """Of the last word."""
        return self.told.phase if self.told is not None else ""

    @property
    def reported(self) -> Twin:
        """What the bridge gets."""
        return self.agent.report(Twin(version=0, fencing_token=self.token, at=""))

    @property
    def story(self) -> list[str]:
        """The history, in words."""
        return [event.what for event in self.book.history]
