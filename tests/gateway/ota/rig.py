"""One device for updates: a vault, a store, a real pipeline over a simulated sensor, the agent, a repository."""

import contextlib
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from gateway import processor
from gateway.config import Interest, MqttSource, Ota, Source, Trial
from gateway.config import Pipeline as PipelineSettings
from gateway.config import Vault as VaultSettings
from gateway.errors import ModelAwaitedError
from gateway.health.metrics import Metrics
from gateway.inference.bundle import ReleaseStore
from gateway.inference.litert import LiteRtBackend
from gateway.inference.model import Model
from gateway.inference.select import load_model
from gateway.metering.meter import Allowance
from gateway.ota.agent import OtaAgent
from gateway.ota.around import Around
from gateway.ota.bay import Bay
from gateway.ota.effective import came_over_the_air
from gateway.ota.figures import OtaMetrics
from gateway.ota.floor import open_floor
from gateway.ota.footing import open_journal
from gateway.ota.install import Installer
from gateway.ota.journal import FILE, Installed, Slot
from gateway.ota.watch import Watch
from gateway.pipeline import Pipeline
from gateway.pipelinerun import AbandonedError
from gateway.preprocess.preparation import preparation_for
from gateway.sealing import SealedModels
from gateway.surroundings import Surroundings
from gateway.values import Capture, Entry, Inference, Receipt, Sample, SampleBlock
from gateway.vault.vault import Vault
from gateway.wire.messages import Assignment, ModelRef, Twin, encode
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for

NEVER = Path("/nonexistent/appliance")
NAME = "probe"


@dataclass
class Sensor:
    """Gives blocks of four samples at a pace; `value` is what they hold, and may be changed."""

    value: float = 1.0
    every_seconds: float = 0.005
    noise: float = 0.0
    name: str = "sensor"
    channels: int = 1
    drops: dict[str, int] = field(default_factory=dict)
    _closed: threading.Event = field(default_factory=threading.Event)

    def captures(self) -> Iterator[Capture]:
        """Yield blocks until closed."""
        rng = np.random.default_rng(1)
        self._closed = threading.Event()
        while not self._closed.wait(self.every_seconds):
            block = np.full((4, self.channels), self.value, np.float32)
            block += rng.normal(0, self.noise or 1e-9, block.shape).astype(np.float32)
            yield SampleBlock(self.name, time.time_ns(), time.monotonic_ns(), 100.0, block)

    def close(self) -> None:
        """Let `captures` end."""
        self._closed.set()


@dataclass
class Record:
    """Counts what the pipeline answered, beside the watch of the agent."""

    watch: Watch
    versions: list[str] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # monotonic seconds
    gaps: list[float] = field(default_factory=list)

    def answered(self, sample: Sample, inference: Inference, seconds: float, busy_seconds: float) -> None:
        """Note and pass on."""
        self.versions.append(inference.model.version)
        self.sequences.append(inference.sequence)
        self.times.append(time.monotonic())
        self.watch.answered(sample, inference, seconds, busy_seconds)

    def failed(self, model: ModelRef, error: Exception) -> None:
        """Pass on."""
        self.watch.failed(model, error)  # type: ignore[arg-type]  # an InferenceError

    def swapped(self, model: ModelRef, gap_seconds: float) -> None:
        """Note and pass on."""
        self.gaps.append(gap_seconds)
        self.watch.swapped(model, gap_seconds)


class Device:
    """A device with one pipeline, `motor`. `start` begins it, `stop` ends it, `restart` is a clean one."""

    source: Source = MqttSource(topic="a", rate_hz=100.0)

    def __init__(
        self,
        root: Path,
        repository: ReleaseRepository,
        *,
        trial: Trial | None = None,
        model: str = NAME,
        vault: Vault | None = None,
    ) -> None:
        self.root = root
        self.repository = repository
        self.trial = trial or Trial(seconds=1.0, min_inferences=60)
        self.settings = PipelineSettings(source="sensor", model=model, interest=Interest(measure_every_seconds=60.0))
        self.releases = root / "releases"
        self.state = root / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.sensor = Sensor()
        self.notices: list[tuple[str, str]] = []
        self.reports: list[Twin] = []
        self.entries: list[Entry] = []
        self.room: int | None = None  # of the link's budget; None: it has none
        self.budget = 1 << 20
        self.period = 0
        self.closed = False  # the window of the link
        self.waited_ns = 0  # for a processor, on the inference thread, besides what it really waited
        self.connects = 1
        self.renewals = 0
        self.attested: int | None = None
        self.boot_id = "boot-1"
        self.monotonic = time.monotonic
        self.vault = vault or Vault.open(VaultSettings(level="software"), self.state, appliance_marker=NEVER)
        self.vault.initialise()
        self.models = SealedModels(self.vault)
        self.grants = True
        self.knows_what_came = True  # False: as if releases in the store had no mark
        self._threads: list[threading.Thread] = []
        self._make()

    def _make(self) -> None:
        self.floor = open_floor(self.vault, self.state)
        came = came_over_the_air(self.store()) if self.knows_what_came else ()
        self.journal = open_journal(self.state, came, self.floor, time.time_ns())
        self.metrics = CollectorRegistry()
        ota = Ota(root_file=Path("root.json"), trial=self.trial, refresh_seconds=3600.0)
        installer = Installer(
            self.vault,
            self.repository,
            self.state / "ota",
            allowance=self.allowance,
            is_closed=lambda: self.closed,
            backends=lambda _settings: (LiteRtBackend(),),
        )
        self.agent = OtaAgent(
            ota,
            self.journal,
            self.repository,
            installer,
            Around(
                there=self.there,
                report=self._report,
                connects=lambda: self.connects,
                renew=self._renew,
                note=lambda code, _severity, detail: self.notices.append((code, detail)),
                metrics=OtaMetrics(self.metrics),
                draw=self.draw,
                monotonic=self._now,
                attested=lambda: self.attested,
                boot_id=self.boot_id,
            ),
            floor=self.floor,
        )
        self.watch = Watch()
        self.record = Record(self.watch)
        self.bay = Bay(self.settings, self.load, self.watch)
        self.agent.add("motor", self.bay)
        self.left = threading.Event()
        self.left_for: BaseException | None = None
        self.pipeline = Pipeline(
            "motor",
            self.settings,
            self.source,
            Surroundings(
                gateway="gw",
                time_zone=UTC,
                open_source=lambda: self.sensor,
                load_model=self._load_to_run,
                submit=self._submit,
                publish=lambda _entries: None,
                instruments=Metrics(),
                new_id=str,
                wall_ns=time.time_ns,
                monotonic_ns=time.monotonic_ns,
                waited_ns=lambda: self.waited_ns + processor.waited_ns(),
                spectator=self.record,
                leave=self._leave,
            ),
        )
        self.bay.host = self.pipeline

    # ---- life ---------------------------------------------------------------------------------------

    def start(self) -> "Device":
        """Begin pipeline and agent, and wait for an answer."""
        self.begin()
        wait_for(lambda: self.record.versions, seconds=20, what="an answer")
        return self

    def begin(self) -> "Device":
        """Begin pipeline and agent."""
        self._run_pipeline()
        self._threads.append(
            threading.Thread(target=self.agent._both, args=(self.agent._ended,), name="test-ota", daemon=True)
        )
        self._threads[-1].start()
        return self

    def _run_pipeline(self) -> None:
        pipeline, agent, bay = self.pipeline, self.agent, self.bay

        def run() -> None:
            while not pipeline._stopping.is_set():
                beckons = bay.beckons
                self.left_for = None
                try:
                    pipeline.run()
                    agent.run_ended("motor")
                    return
                except ModelAwaitedError:
                    pass
                except AbandonedError:
                    if not isinstance(self.left_for, ModelAwaitedError):
                        return
                while bay.beckons == beckons and not pipeline._stopping.wait(0.01):
                    pass

        self._threads.append(threading.Thread(target=run, name="test-infer", daemon=True))
        self._threads[-1].start()

    def rerun(self) -> None:
        """Run the pipeline again, as the supervisor does after a run that was left."""
        self.left.clear()
        self._run_pipeline()

    def stop(self) -> None:
        """End both cleanly."""
        self.agent.stop()
        self.pipeline.stop()
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()
        self.bay.let_go()

    def restart(self) -> None:
        """End both and begin again, from the disk."""
        self.stop()
        self._make()
        self.start()

    # ---- wishes and answers -------------------------------------------------------------------------

    def desire(self, version: str, token: int, *, number: int = 1) -> None:
        """Hand over a twin that gives the pipeline a release."""
        given = Assignment(pipeline="motor", model=ModelRef(name=NAME, version=version))
        twin = Twin(version=number, fencing_token=token, at="2026-01-01T00:00:00Z", assignments=[given])
        self.agent.take_desired(encode(twin))

    def phase(self) -> tuple[str, str, str]:
        """Return phase, version and code of the last word."""
        told = self.slot.told
        return ("", "", "") if told is None else (told.phase, told.model.version, told.code)

    def reaches(self, phase: str, version: str, code: str = "", seconds: float = 100.0) -> None:
        """Wait for a word."""
        try:
            wait_for(lambda: self.phase() == (phase, version, code), seconds=seconds, what=f"{phase} {version} {code}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.phase()}: {self.slot}") from error

    @property
    def journal_file(self) -> Path:
        """Where the journal lies."""
        return self.state / "ota" / FILE

    def fill_disk(self) -> None:
        """Let the disk refuse every write of the journal."""
        part = self.state / "ota" / f".{FILE}.part"
        while not part.is_dir():
            with contextlib.suppress(FileExistsError):  # a write is under way
                part.mkdir()

    def free_disk(self) -> None:
        """Let it take them again."""
        (self.state / "ota" / f".{FILE}.part").rmdir()

    @property
    def slot(self) -> Slot:
        """Of the pipeline."""
        return self.journal.book.slot("motor")

    @property
    def serving(self) -> str:
        """The version that answers."""
        ref = self.bay.serving
        return ref.version if ref is not None else ""

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric of updates."""
        return self.metrics.get_sample_value(name, labels) or 0.0

    def remove(self, version: str) -> None:
        """Remove a release from the disk, wherever it lies."""
        shutil.rmtree(self.releases / NAME / version, ignore_errors=True)
        self.vault.remove(NAME, version)

    # ---- what is around -----------------------------------------------------------------------------

    def _load_to_run(self) -> Model:
        label = self.agent.run_begins("motor")
        if (awaited := self.agent.awaited("motor")) is not None:
            raise awaited
        return self.load(label)

    def _leave(self, error: BaseException) -> None:
        self.left_for = error
        self.left.set()

    def store(self) -> ReleaseStore:
        """Where the device finds releases."""
        return ReleaseStore([self.releases], packaged=self.root / "none", sealed=self.models.directory)

    def there(self) -> list[tuple[str, str]]:
        """What lies there."""
        return [(each.name, each.version) for each in self.store().releases()]

    def load(self, label: str) -> Model:
        """Load a release."""
        settings = msgspec.structs.replace(self.settings, model=label)
        return load_model(self.store(), settings, preparation_for, self.models.open, backends=(LiteRtBackend(),))

    def allowance(self) -> Allowance | None:
        """Return what the link's budget has left: nothing is taken from `room`."""
        hour_ns = 3600 * 1_000_000_000
        return None if self.room is None else Allowance(self.room, self.budget, self.period, hour_ns)

    def draw(self) -> float:
        """Return what stands for chance in the pauses between tries: here none."""
        return 0.0

    def _now(self) -> float:
        return self.monotonic()

    def _report(self, payload: bytes) -> None:
        self.reports.append(msgspec.json.decode(payload, type=Twin))

    def _renew(self) -> None:
        self.renewals += 1
        if self.grants:
            self.repository.grant(self.vault)

    def _submit(self, entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        self.entries += entries
        done(())


def digest(content: bytes) -> str:
    """Return the sha256."""
    return hashlib.sha256(content).hexdigest()


def installed(version: str) -> Installed:
    """Name a release of the tests."""
    return Installed(name=NAME, version=version)
