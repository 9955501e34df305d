"""A gateway whose system is updated, without processes: the real agent over slots and bundles in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry

from gateway.config import Os
from gateway.osupdate.agent import OsAgent
from gateway.osupdate.around import Around
from gateway.osupdate.bundles import OfferedBundle
from gateway.osupdate.errors import BadSignatureError
from gateway.osupdate.figures import OsMetrics
from gateway.osupdate.journal import Journal
from gateway.osupdate.levers import Verb
from gateway.osupdate.offer import OsSays, path_of
from gateway.osupdate.plan import Health
from gateway.osupdate.rauc import Progress, Slot, SystemStatus
from gateway.osupdate.relay import Relayed
from gateway.osupdate.release import BundleFacts, SystemRelease
from gateway.ota.errors import NotOfferedError
from gateway.ota.fetch_offer import OfferedFile
from gateway.wire.messages import ModelRef, Twin, decode, encode, os_pipeline

AT = "2026-01-31T12:00:00.000Z"
Fate = Literal["healthy", "unhealthy", "panics", "forged"]


@dataclass(slots=True)
class OsDevice:
    """Knobs: `fates` says what becomes of a version here; `floors` what each version names as its floor."""

    name: str
    directory: Path
    compatible: str = "sluice-uefi-amd64"
    version: str = "1.0.0"
    fates: Callable[[str], Fate] = lambda _version: "healthy"
    floors: dict[str, str] = field(default_factory=dict)
    offered: tuple[str, ...] = ("1.1.0",)
    installs: list[str] = field(default_factory=list)
    boots: int = 0
    health: Health | None = None
    slots: dict[str, Slot] = field(default_factory=dict)
    primary: str = "a"
    booted: str = "a"
    token: int = 0
    now: float = 0.0
    restarting: bool = False
    _agent: OsAgent = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {
            "a": Slot("rootfs.0", "a", booted=True, good=True, version=self.version),
            "b": Slot("rootfs.1", "b", booted=False, good=True),
        }
        self._start()

    @property
    def model(self) -> ModelRef:
        """What runs, as the rollouts' stage looks at it."""
        return ModelRef(name=self.compatible, version=self.version)

    @property
    def pipeline(self) -> str:
        """What stands for the system."""
        return os_pipeline(self.compatible)

    def take(self, payload: bytes) -> Sequence[bytes]:
        """Take a desired twin; return the reports that it leads to, in order."""
        twin = decode(payload, Twin)
        if twin.fencing_token < self.token:
            return []
        self.token = twin.fencing_token
        self._agent.wish(twin)
        reports: list[bytes] = []
        for _ in range(12):
            self.now += 30.0
            self._agent.tick()
            if self.restarting:
                self._boot()
            report = self.report()
            if not reports or reports[-1] != report:
                reports.append(report)
        return reports

    def report(self) -> bytes:
        """What the device says of itself now."""
        return encode(self._agent.report(Twin(version=0, fencing_token=self.token, at=AT)))

    # ---- RAUC, bundles and levers, for the agent ---------------------------------------------------------------

    def status(self) -> SystemStatus:
        """See `Rauc.status`."""
        return SystemStatus(self.compatible, self.booted, self.primary, tuple(self.slots.values()))

    def info(self, bundle: str) -> BundleFacts:
        """See `Rauc.info`."""
        version = Path(bundle).name
        if self.fates(version) == "forged":
            raise BadSignatureError("signature verification failed")
        return BundleFacts(self.compatible, version, self.floors.get(version, ""))

    def install(self, source: str, progress: Progress) -> None:
        """See `Rauc.install`."""
        version, other = Path(source).name, "b" if self.booted == "a" else "a"
        progress(100, "Installing done.")
        self.installs.append(version)
        self.slots[other] = replace(self.slots[other], version=version, good=True)
        self.primary = other

    def pull(self, verb: Verb) -> None:
        """See `Levers.pull`."""
        other = "b" if self.booted == "a" else "a"
        match verb:
            case "restart":
                self.restarting = True
            case "keep":
                self.primary = self.booted
            case "return":
                self.primary = other

    def refresh(self) -> None:
        """See `Bundles.refresh`."""

    def find(self, compatible: str, version: str) -> OfferedBundle:
        """See `Bundles.find`."""
        if version not in self.offered:
            raise NotOfferedError(f"{version} is not offered")
        says = OsSays(compatible=compatible, version=version, floor=self.floors.get(version, ""))
        return OfferedBundle(OfferedFile(path_of(compatible, version), 1000, "0" * 64, {}), says)

    def has_room(self, bundle: OfferedBundle) -> bool:
        """See `Bundles.has_room`."""
        return True

    def fetch(self, bundle: OfferedBundle, progress: Callable[[int], None]) -> Path:
        """See `Bundles.fetch`."""
        progress(bundle.file.size_bytes)
        return Path("/bundles") / bundle.says.version

    @contextmanager
    def streamed(self, bundle: OfferedBundle, seen: Relayed) -> Iterator[str]:
        """See `Bundles.streamed`."""
        yield f"http://127.0.0.1/{bundle.says.version}"

    def clear(self) -> None:
        """See `Bundles.clear`."""

    def stop(self) -> None:
        """See `Bundles.stop`."""

    def resume(self) -> None:
        """See `Bundles.resume`."""

    # ---- inside -------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        self.restarting = False
        self.boots += 1
        slot = self.primary
        version = self.slots[slot].version
        fate = self.fates(version) if slot != self.booted else "healthy"
        if fate in ("unhealthy", "panics"):
            if fate == "unhealthy":
                self.health = Health(f"bad-{self.boots}", version, "unhealthy", ("the outbox is not writable",), AT)
            self.slots[slot] = replace(self.slots[slot], good=False)
            self.primary = self.booted
        else:
            self.slots = {name: replace(each, booted=name == slot) for name, each in self.slots.items()}
            self.booted, self.version = slot, version
            self.health = Health(f"boot-{self.boots}", version, "healthy", at=f"{self.boots}")
        self._start()

    def _start(self) -> None:
        self._agent = OsAgent(
            Os(media="off"),
            Journal(self.directory),
            self,
            self,
            self,
            around=Around(
                boot_id=f"boot-{self.boots}",
                release=SystemRelease(
                    version=self.version, compatible=self.compatible, floor=self.floors.get(self.version, "")
                ),
                health=lambda: self.health,
                flushed=lambda: True,
                window_open=lambda: True,
                counter=lambda: None,
                approval=lambda _slot, _pcr11: "",
                connects=lambda: 1,
                note=lambda _code, _severity, _words: None,
                metrics=OsMetrics(CollectorRegistry()),
                wall_ns=lambda: 0,
                monotonic=lambda: self.now,
            ),
        )
