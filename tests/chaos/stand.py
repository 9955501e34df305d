"""The stand of most experiments: broker, bridge, a hard-driven producer, and the oracle that watches them.

It is the rig of `hil.loopback`, with a producer process in the place of the gateway, or beside it.
"""

import json
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from gateway.control import ask
from gateway.errors import ControlError
from hil.loopback.children import Child, RigError
from hil.loopback.rig import Placement, Rig, eventually
from tests.chaos.experiment import Experiment
from tests.chaos.footprint import POOL_THREADS, SPARE, Footprint, returns_to
from tests.chaos.oracle import Oracle, Verdict
from tests.chaos.producer import SOCKET_NAME

MIB: Final = 1024 * 1024
GROWTH_BYTES: Final = 64 * MIB
"""What a process may keep after a fault and the burst that follows: allocators do not give all of it back."""
STORE_CACHE_BYTES: Final = 64 * MIB
"""What the bridge's store fills with pages of its database, however small it is at the start; then no more."""

_SOURCES: Final = {"machine": {"type": "health", "rate_hz": 1.0}}
_PIPELINES: Final = {"machine": {"source": "machine", "model": "process-anomaly"}}


@dataclass(frozen=True, slots=True)
class Options:
    """What an experiment wishes of its stand."""

    rate: float = 300.0  # records a second
    burst: int = 1000  # records of one `burst`
    keepalive_seconds: int = 5
    ack_timeout_seconds: float = 2.0
    bridge_module: str = "cloud_bridge"
    producer_module: str = "tests.chaos.producer"
    persistence: bool = False  # of the broker
    outbox: Mapping[str, Any] = field(default_factory=dict)  # settings of the producer's
    bridge: Mapping[str, Any] = field(default_factory=dict)  # settings, merged over the rig's own
    broker_lines: Sequence[str] = ()  # added to the configuration of the broker
    drain_seconds: float = 20.0


class Stand:
    """Everything of one experiment; nothing of it is left when the block ends."""

    def __init__(
        self, experiment: Experiment, options: Options | None = None, placement: Placement | None = None, name: str = ""
    ) -> None:
        self.experiment = experiment
        self.options = options = options or Options()
        self.placement = placement or Placement()
        # Given to every process that connects, and looked for in every log.
        self.secret = secrets.token_hex(12)
        home = experiment.directory / (name or "stand")
        home.mkdir(parents=True)
        self.directory = home
        password_file = home / "password"
        password_file.write_text(self.secret)
        self._identity = {
            "username": "chaos",
            "password_file": str(password_file),
            "keepalive_seconds": options.keepalive_seconds,
        }
        self.rig = self._make_rig()
        self._configure()
        self.oracle = self._make_oracle()
        self.database = home / "rig" / "bridge" / "bridge.db"
        self.producer_directory = home / "producer"
        self.producer: Child | None = None
        self._incarnations = 0
        self._baseline: dict[str, Footprint] = {}

    def _make_rig(self) -> Rig:
        where = self.directory / "rig"
        return Rig(where, _SOURCES, _PIPELINES, persistence=self.options.persistence, placement=self.placement)

    def _make_oracle(self) -> Oracle:
        return Oracle(self.directory / "oracle")

    def _configure(self) -> None:
        rig, options = self.rig, self.options
        rig.bridge_settings["brokers"][0].update(self._identity)
        for key, value in options.bridge.items():
            rig.bridge_settings[key] = {**rig.bridge_settings.get(key, {}), **value}
        rig.write()
        rig.bridge.command[rig.bridge.command.index("cloud_bridge")] = options.bridge_module
        with (rig.directory / "broker.conf").open("a") as file:
            # Started by root it would give its rights up, and could then not write where the rig lets it.
            file.writelines(f"{line}\n" for line in ("user root", *options.broker_lines))

    # ---- up and down -----------------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up, and wait until the first record has gone the whole way."""
        self.oracle.start()
        self.start_broker()
        self.rig.start_bridge()
        self.start_producer()
        self.until(lambda: self.committed() > 0, "the first record is committed")

    def start_broker(self) -> None:
        """Start the broker; a store of it that it cannot read is put aside, as a supervisor on a site would.

        A broker is a lossy pipe here: what its file held is still in the outboxes.
        """
        try:
            self.rig.start_broker()
        except RigError:
            file = self.rig.directory / "broker" / "mosquitto.db"
            if self.rig.broker.running or not file.exists():
                raise
            file.rename(file.with_name(f"mosquitto.db.damaged-{time.monotonic_ns()}"))
            self.experiment.log("broker_store_set_aside")
            self.rig.start_broker()

    def start_producer(self) -> None:
        """Start the producer, or the next one on the same outbox, and wait until it answers."""
        options = self.options
        broker = {**self.placement.broker(self.rig.ports.broker), **self._identity}
        arguments = {
            "directory": str(self.producer_directory),
            "broker": json.dumps(broker),
            "oracle": str(self.oracle.socket),
            "incarnation": str(self._incarnations),
            "rate": str(options.rate),
            "burst": str(options.burst),
            "drain-seconds": str(options.drain_seconds),
            "ack-timeout-seconds": str(options.ack_timeout_seconds),
            "outbox": json.dumps(dict(options.outbox)),
        }
        self._incarnations += 1
        command = [*self.placement.prefix("gateway"), sys.executable, "-m", options.producer_module]
        for name, value in arguments.items():
            command += [f"--{name}", value]
        self.producer = Child("producer", command, self.rig.directory / "log" / "producer.log")
        self.producer.start()
        self.producer.wait_until(lambda: self.status() is not None, "the producer answers")

    def processes(self) -> dict[str, Child]:
        """Return what runs, by name."""
        children = {"broker": self.rig.broker, "bridge": self.rig.bridge}
        if self.producer is not None:
            children["producer"] = self.producer
        return {name: child for name, child in children.items() if child.running}

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.producer is not None:
            self.producer.kill()
        self.rig.kill()
        self.oracle.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for child in (*self.processes().values(), self.oracle.process):
                print(f"--- {child.name}\n{child.tail(15)}")
        self.kill()

    # ---- the producer ----------------------------------------------------------------------------

    def ask(self, request: str) -> dict[str, Any]:
        """Ask the producer.

        Raises:
            ControlError: it does not answer.
        """
        return ask(self.producer_directory / SOCKET_NAME, request)

    def status(self) -> dict[str, Any] | None:
        """Ask the producer how it is; None if it does not answer."""
        try:
            return self.ask("status")
        except ControlError:
            return None

    def told(self) -> dict[str, Any]:
        """Ask the producer how it is, and insist on an answer."""
        return self.ask("status")

    # ---- waiting ---------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str, timeout_seconds: float = 30.0) -> float:
        """Wait for a condition; return the seconds it took."""
        began = time.monotonic()
        eventually(condition, what, timeout_seconds)
        return time.monotonic() - began

    def committed(self) -> int:
        """Return how many rows the bridge has committed; 0 while it has no store."""
        try:
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5.0)) as db:
                (count,) = db.execute("SELECT coalesce(sum(records), 0) FROM streams").fetchone()
        except sqlite3.OperationalError:
            return 0
        return int(count)

    def dead_letters(self) -> int:
        """Return how many messages the bridge could not use."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5.0)) as db:
            (count,) = db.execute("SELECT coalesce(sum(count), 0) FROM dead_letters").fetchone()
        return int(count)

    def newest_ns(self) -> int:
        """Return when the newest of the latest records was made, UTC; 0 while there is none."""
        try:
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5.0)) as db:
                latest = "SELECT recorded_at_ns FROM stream_records ORDER BY id DESC LIMIT 200"
                (newest,) = db.execute(f"SELECT coalesce(max(recorded_at_ns), 0) FROM ({latest})").fetchone()
        except sqlite3.OperationalError:
            return 0
        return int(newest)

    def flows(self, records: int = 50, timeout_seconds: float = 30.0) -> float:
        """Wait until so many more records are committed; return the seconds until the first of them was."""
        goal = self.committed() + 1
        first = self.until(lambda: self.committed() >= goal, "a record is committed", timeout_seconds)
        self.until(lambda: self.committed() >= goal + records - 1, f"{records} more are committed", timeout_seconds)
        return first

    def drained(self, timeout_seconds: float = 60.0) -> float:
        """Let the producer make no more, and wait until its outbox is empty; return the seconds."""
        self.ask("pause")
        return self.until(lambda: bool((self.status() or {}).get("empty")), "the outbox is empty", timeout_seconds)

    def fill_broker(self) -> int:
        """Kill the bridge, and let the broker take as much as the producer sends; return the records.

        The broker keeps them for the session of the bridge, which is to be started again before that expires. The
        producer makes only bursts from here on, until `resume`.
        """
        self.drained()
        self.rig.bridge.kill()
        before = int(self.told()["sent_records"])
        self.ask("burst")
        self.until(lambda: int(self.told()["sent_records"]) > before, "the broker has taken some")
        seen = (0, time.monotonic())

        def steady() -> bool:
            nonlocal seen
            sent = int(self.told()["sent_records"])
            if sent != seen[0]:
                seen = (sent, time.monotonic())
            return time.monotonic() - seen[1] > 0.25

        self.until(steady, "the producer has sent what it may")
        self.experiment.log("broker_filled", records=seen[0] - before)
        return seen[0] - before

    # ---- what must hold --------------------------------------------------------------------------

    def remember(self) -> None:
        """Take the present footprint of every process as what it needs."""
        self._baseline = {name: Footprint.of(child.pid) for name, child in self.processes().items()}

    def settle(self, *, least: int = 100, timeout_seconds: float = 60.0) -> Verdict:
        """Drain, compare with the truth, and check all that must hold after every experiment."""
        seconds = self.drained(timeout_seconds)
        verdict = self.oracle.judge(self.database)
        self.experiment.log("settled", drained_seconds=round(seconds, 2), verdict=verdict)
        verdict.check(least=least)
        self.check_footprints()
        self.check_logs()
        return verdict

    def check_footprints(self) -> None:
        """Each process that lives since `remember` takes no more than it did then."""
        for name, child in self.processes().items():
            if name in self._baseline:
                # Only the producer has filled its pool of threads beforehand.
                spare = SPARE + (POOL_THREADS if name == "gateway" else 0)
                baseline = self._baseline[name]
                growth = GROWTH_BYTES + (STORE_CACHE_BYTES if name == "bridge" else 0)
                # Its store opens a connection, of a file and its log, for each reader at once, and keeps it.
                connections = SPARE + (2 * POOL_THREADS if name == "bridge" else 0)
                now = returns_to(child.pid, baseline, growth_bytes=growth, thread_spare=spare, fd_spare=connections)
                self.experiment.log("footprint", process=name, before=self._baseline[name], now=now)

    def logs(self) -> dict[str, str]:
        """Return what every process has logged."""
        return {file.stem: file.read_text(errors="replace") for file in (self.rig.directory / "log").iterdir()}

    def check_logs(self) -> None:
        """No unhandled exception anywhere, and no secret."""
        for name, text in self.logs().items():
            assert "Traceback" not in text, f"{name} has raised:\n{text[text.index('Traceback') - 500 :][:4000]}"
            assert self.secret not in text, f"{name} has logged the password"

    def logged(self, process: str, event: str) -> list[dict[str, Any]]:
        """Return the log lines of a process with a certain event."""
        text = self.logs().get(process, "")
        lines = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == event]
