"""SIGKILL at every system call that makes something durable, one after the other."""

import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.storage import outbox_steps, syscalls
from tests.chaos.storage.campaign import ROOT
from tests.chaos.storage.outbox_oracle import Promises, judge, promises_of
from tests.chaos.storage.outbox_victim import SETTINGS
from tests.chaos.storage.syscalls import calls, counted, traced
from tests.chaos.storage.warmed import Warmed
from tests.simulators.device import Device
from tests.simulators.mosquitto import BINARY, Mosquitto
from tests.simulators.waiting import wait_for


@pytest.fixture(autouse=True)
def _strace() -> None:
    if reason := syscalls.missing():
        pytest.skip(f"no killing at system calls here: {reason}")


def said_in(log: Path) -> tuple[Promises, bool]:
    """Return what was promised since the last damage, and whether the file was being damaged just then."""
    lines = log.read_text().splitlines() if log.exists() else []
    if "damaging" not in lines:
        return promises_of(lines), False
    after = lines[lines.index("damaging") + 1 :]
    return promises_of(after), not after


def test_c02_an_outbox_killed_at_any_durable_call_keeps_its_promises(experiment: Experiment) -> None:
    def words(place: Path) -> list[str]:
        place.mkdir()
        return [str(place / "state/outbox.db"), str(place / "log")]

    with Warmed(outbox_steps.__name__, experiment.directory / "victims.log") as victim:
        trace = experiment.directory / "trace"
        assert victim.run(words(experiment.directory / "whole"), syscalls.recorded(trace, syscalls.DURABLE)) == 0
        _kill_everywhere(experiment, victim, words, counted(trace))


def _kill_everywhere(
    experiment: Experiment, victim: Warmed, words: Callable[[Path], list[str]], counts: Counter[str]
) -> None:
    assert {"fdatasync", "unlink", "rename", "ftruncate", "pwrite64"} <= set(counts)
    assert counts["rename"] >= 3, "two stores made, one put aside"
    chosen: list[tuple[str, int]] = []
    for name, count in counts.items():  # those that there are few of are all tried
        wanted = experiment.scaled(10, 400)
        chosen += [(name, at) for at in sorted(experiment.random.sample(range(1, count + 1), min(count, wanted)))]
    experiment.log("points", counts=counts, chosen=chosen)
    killed = 0
    for name, at in chosen:
        place = experiment.directory / f"{name}-{at}"
        killed += victim.killed_at(words(place), name, at)
        said, damaged = said_in(place / "log")
        if damaged:
            said = Promises()  # whatever was in the damaged file; it must open all the same
        verdict = judge(place / "state/outbox.db", SETTINGS, said)
        faults = [fault for fault in verdict.faults if not (damaged and "quarantined" in fault)]
        faults = [fault for fault in faults if "store_quarantined" not in fault]  # the notice about the damage
        assert not faults, f"killed at {name} number {at}: {faults[:5]}"
    experiment.log("killed", points=len(chosen), killed=killed)
    assert killed >= len(chosen) * 0.9


# ---- the bridge ----------------------------------------------------------------------------------

BATCHES = 6
ROWS = 10
NAMES = ("fdatasync", "pwrite64", "sendto", "recvfrom")


class TracedBridge:
    """The bridge under strace, perhaps to be killed at a call."""

    def __init__(self, directory: Path, broker: str, *, module: str = "cloud_bridge") -> None:
        directory.mkdir()
        self.database = directory / "bridge.db"
        self.trace = directory / "trace"
        self._log = directory / "bridge.log"
        config = directory / "bridge.yaml"
        config.write_text(
            f"brokers: [{{url: '{broker}'}}]\nstore: {{url: 'sqlite:///{self.database}'}}\n"
            "console: {enabled: false}\ningest: {client_id: traced, session_expiry_seconds: 30, workers: 1}\n"
        )
        self._command = [sys.executable, "-m", module, "run", "--config", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, kill_at: tuple[str, int] | None = None) -> None:
        words = ["setpriv", "--pdeathsig=KILL", "--", *traced(self._command, self.trace, NAMES, kill_at)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def committed(self) -> int:
        """The highest number up to which everything is in the file, read as any program reads it."""
        if not self.database.exists():
            return 0
        with contextlib.closing(sqlite3.connect(self.database)) as db:
            try:
                found = {seq for (seq,) in db.execute("SELECT seq FROM stream_records")}
            except sqlite3.OperationalError:  # killed before it had made its tables
                return 0
        return next(seq for seq in itertools.count() if seq + 1 not in found)


def early_acknowledgements(trace: Path, least: int) -> list[str]:
    """Return the acknowledgements that went out before the log of the database was synced for the batch they confirm.

    With one batch at a time, the batch is the last one received; at least so many must have been seen.
    """
    moments: list[tuple[int, str, str]] = []
    for call in calls(trace):
        in_log = "bridge.db-wal>" in call.arguments
        if call.name == "recvfrom" and "/records/event" in call.arguments:
            moments.append((call.ended, "batch", ""))
        elif call.name == "pwrite64" and in_log:
            moments.append((call.began, "write", ""))
        elif call.name == "fdatasync" and in_log and call.answer.startswith("0"):
            moments.append((call.ended, "sync", ""))
        elif call.name == "sendto" and "/ack/event" in call.arguments:
            moments.append((call.began, "ack", call.arguments))
    assert [kind for _, kind, _ in moments].count("batch") >= least
    early: list[str] = []
    synced = False
    for _, kind, text in sorted(moments):
        if kind == "ack" and not synced:
            early.append(text)
        elif kind != "ack":
            synced = kind == "sync"
    return early


@pytest.fixture
def broker(experiment: Experiment) -> Iterator[Mosquitto]:
    if BINARY is None:
        pytest.skip("there is no mosquitto (apt-get install mosquitto)")
    with Mosquitto(experiment.directory) as found:
        yield found


def deliver(device: Device, bridge: TracedBridge) -> None:
    """Hand over some batches, one at a time, until all are acknowledged or the bridge is dead."""
    device.put("event", BATCHES * ROWS)
    wait_for(lambda: device.waiting == 0 or bridge.dead, seconds=40, what="acknowledged, or killed")


def test_c02_the_bridge_never_acknowledges_what_is_not_synced(experiment: Experiment, broker: Mosquitto) -> None:
    bridge = TracedBridge(experiment.directory / "bridge", broker.url)
    try:
        bridge.start()
        with Device(broker.port, batch_rows=ROWS, window=1) as device:
            deliver(device, bridge)
        assert device.waiting == 0
    finally:
        bridge.stop()
    assert early_acknowledgements(bridge.trace, BATCHES) == []


def test_c02_control_a_bridge_that_acknowledges_first_is_caught(experiment: Experiment, broker: Mosquitto) -> None:
    bridge = TracedBridge(experiment.directory / "bridge", broker.url, module="tests.simulators.careless_bridge")
    try:
        bridge.start()
        with Device(broker.port, batch_rows=ROWS, window=1) as device:
            deliver(device, bridge)
    finally:
        bridge.stop()
    # It takes what has gathered while it was at the disk, two batches in one call.
    assert early_acknowledgements(bridge.trace, 1)


def test_c02_the_bridge_killed_at_any_call_of_a_batch_has_what_it_acknowledged(
    experiment: Experiment, broker: Mosquitto
) -> None:
    points = [(name, at) for name, last in (("fdatasync", 24), ("sendto", 30)) for at in range(1, last + 1)]
    chosen = experiment.random.sample(points, min(len(points), experiment.scaled(8, len(points))))
    killed = 0
    for name, at in sorted(chosen):
        bridge = TracedBridge(experiment.directory / f"{name}-{at}", broker.url)
        try:
            bridge.start((name, at))
            with Device(broker.port, f"dock-{name}-{at}", batch_rows=ROWS, window=1) as device:
                deliver(device, bridge)
                bridge.stop()
                killed += device.waiting > 0
                assert device.marks["event"] <= bridge.committed(), f"killed at {name} number {at}"
                bridge.start()
                wait_for(lambda device=device: device.waiting == 0, seconds=30, what="it comes again, and arrives")  # type: ignore[misc]
        finally:
            bridge.stop()
        assert bridge.committed() == BATCHES * ROWS
    experiment.log("killed", chosen=chosen, killed=killed)
    assert killed > 0
