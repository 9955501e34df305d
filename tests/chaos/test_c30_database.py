"""C30: the cloud's database is locked, full, slow, away or killed, while devices send and some of it is poison."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hil.loopback.rig import eventually
from tests.chaos.experiment import Experiment
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.device import Device
from tests.simulators.mosquitto import Mosquitto
from tests.simulators.postgres import PostgresServer, binaries
from tests.simulators.samples import batch, event, record

TOPIC = "sluice/v1/poisoner/records/event"
DISK_BYTES = 256 * 1024 * 1024
"""The log of the database has room in it, some megabytes a second: it is full only when it is filled on purpose."""
KEYS = "SELECT gateway, epoch, class, seq, body FROM records"
MARK = (
    "SELECT coalesce(max(last), 0) FROM spans WHERE gateway = '{}' AND epoch = '{}' AND class = 'event' AND first = 1"
)
LOCKED_SECONDS = 2.0

Query = Callable[[str], list[tuple[Any, ...]]]
Fault = Callable[[], None]


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a small file system of memory."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small tmpfs needs root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave nearly nothing of a disk to others."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(65_536))
                    file.flush()
            except OSError:
                pass
        yield
    finally:
        ballast.unlink(missing_ok=True)


@contextmanager
def slowed(pid: int, microseconds: int) -> Iterator[None]:
    """Let every sync of a process take so much longer."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed: apt-get install strace")
    inject = f"inject=fdatasync,fsync:delay_enter={microseconds}"
    command = [strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", inject, "-p", str(pid)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


class Senders:
    """Honest devices that never stop, and one that sends poison now and then."""

    def __init__(self, port: int) -> None:
        self.devices = [Device(port, f"dock-{n}", f"{n:016x}", resend_seconds=1.0) for n in range(1, 3)]
        self.poison = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="senders", daemon=True)

    def __enter__(self) -> "Senders":
        for device in self.devices:
            device.__enter__()
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for device in self.devices:
                device.put("event", 5)
                device.put("critical", 1)

    def rest(self) -> None:
        """Put nothing more in."""
        self._stop.set()
        self._thread.join()

    def send_poison(self) -> None:
        """Send what cannot be decoded, what is none of the kinds, and a body that is not what it says."""
        self.poison += 1
        records = (
            record(1, b'{"no":"event"}', kind="event"),
            record(2, b"{}", kind="what"),
            record(3, event(f"p{self.poison}")),
        )
        bad = batch(*records, epoch=f"{self.poison:016x}")
        self.devices[0].publish(TOPIC, bad)
        self.devices[0].publish(TOPIC, b"junk %d" % self.poison)

    def __exit__(self, *_: object) -> None:
        self.rest()
        for device in self.devices:
            device.__exit__(None, None, None)

    def waiting(self) -> int:
        """Return how many rows are not acknowledged."""
        return sum(device.waiting for device in self.devices)


def check(query: Query, senders: Senders) -> None:
    """Compare what devices gave with what the database holds; poison is held with its key, beside its row."""
    rows = query(KEYS)
    stored = Counter(tuple(row[:4]) for row in rows)
    bodies = {tuple(row[:4]): bytes(row[4]) for row in rows}
    given = {
        (d.gateway, d.epoch, name, n)
        for d in senders.devices
        for name, last in d.given.items()
        for n in range(1, last + 1)
    }
    lost = given - stored.keys()
    assert not lost, f"{len(lost)} of {len(given)} lost, as {sorted(lost)[:3]}"
    assert max(stored.values()) == 1, "a record is there twice"
    wrong = [key for key in given if f"{key[0]}-{key[1][-4:]}-{key[2]}-{key[3]:08}".encode() not in bodies[key]]
    assert not wrong, f"another record stands under {wrong[:3]}"
    letters = Counter(
        (reason, epoch, seq) for reason, epoch, seq in query("SELECT reason, epoch, seq FROM dead_letters")
    )
    for n in range(1, senders.poison + 1):
        assert letters["bad-body", f"{n:016x}", 1] == letters["unknown-kind", f"{n:016x}", 2] == 1
        assert stored["poisoner", f"{n:016x}", "event", 3] == 1, "what came with the poison is used"
    assert sum(count for (reason, _, _), count in letters.items() if reason == "bad-payload") == senders.poison


def go_through(
    experiment: Experiment, senders: Senders, bridge: BridgeProcess, faults: dict[str, Fault], visible: set[str]
) -> None:
    """Let each fault happen in a random order, with poison in the midst of it; all must flow again after it."""
    names = [name for name in faults for _ in range(experiment.scaled(1, 10))]
    experiment.random.shuffle(names)
    for name in names:
        said = bridge.log.read_text().count('"store_failing"')
        senders.send_poison()
        began = time.monotonic()
        faults[name]()
        marks = [dict(device.marks) for device in senders.devices]
        eventually(
            lambda marks=marks: all(  # type: ignore[misc]  # bound at once
                device.marks["event"] > before["event"] for device, before in zip(senders.devices, marks, strict=True)
            ),
            f"records flow again after {name}",
        )
        experiment.log("survived", fault=name, seconds=round(time.monotonic() - began, 2))
        if name in visible:
            now = bridge.log.read_text().count('"store_failing"')
            assert now == said + 1, f"{name} is told once, not {now - said} times"
    senders.rest()
    eventually(lambda: senders.waiting() == 0, "all is acknowledged", 60.0)
    text = bridge.log.read_text()
    assert text.count('"store_failing"') == text.count('"store_works_again"')
    assert "Traceback" not in text, text[-3000:]


def nothing_is_told_before_it_is_there(query: Query, senders: Senders) -> None:
    """Check for a while that no device is told of more than the database has; nobody else can write there meanwhile."""
    marks = [int(query(MARK.format(device.gateway, device.epoch))[0][0]) for device in senders.devices]
    end = time.monotonic() + LOCKED_SECONDS
    while time.monotonic() < end:
        for device, mark in zip(senders.devices, marks, strict=True):
            assert device.marks["event"] <= mark, "what could not be committed was acknowledged"
        time.sleep(0.05)
    assert senders.waiting() > 0, "the lock holds nothing up"


def told(bridge: BridgeProcess) -> None:
    """Wait until the bridge says that its database does not take anything."""

    def failing() -> bool:
        text = bridge.log.read_text()
        return text.count('"store_failing"') > text.count('"store_works_again"')

    eventually(failing, "it is told")


def replays(bridge: BridgeProcess, senders: Senders) -> None:
    """Take one dead letter back with the command line: a record that met another's number."""
    senders.devices[0].publish(TOPIC, batch(record(3, event("another")), base=1, epoch=f"{1:016x}"))

    def letters() -> list[dict[str, Any]]:
        return [json.loads(line) for line in run(bridge, "list", "--json", "--limit", "1000").split("\n") if line]

    eventually(lambda: any(each["reason"] == "conflict" for each in letters()), "the conflict is kept")
    (conflict,) = [each for each in letters() if each["reason"] == "conflict"]
    run(bridge, "replay", str(conflict["id"]))
    assert not any(each["reason"] == "conflict" for each in letters())


def run(bridge: BridgeProcess, *arguments: str) -> str:
    command = [sys.executable, "-m", "cloud_bridge", "deadletters", arguments[0], "--config", str(bridge.file)]
    done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sqlite_query(file: Path) -> Query:
    def query(sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10.0)) as db:
            return db.execute(sql).fetchall()

    return query


def test_c30_sqlite_locked_full_slow_or_killed_loses_nothing_and_poison_holds_nobody_up(experiment: Experiment) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(experiment.directory / "disk", DISK_BYTES))
        broker = stack.enter_context(Mosquitto(experiment.directory))
        bridge = BridgeProcess(disk, broker.url)
        stack.callback(bridge.kill)
        bridge.start()
        senders = stack.enter_context(Senders(broker.port))

        def locked() -> None:
            with closing(sqlite3.connect(bridge.database, isolation_level=None, timeout=10.0)) as other:
                other.execute("BEGIN IMMEDIATE")
                nothing_is_told_before_it_is_there(lambda sql: other.execute(sql).fetchall(), senders)
                told(bridge)  # on a busy machine it may have come to its first commit late
                other.execute("ROLLBACK")

        def full() -> None:
            with filled(disk):
                told(bridge)
                assert senders.waiting() > 0

        def slow() -> None:
            with slowed(bridge.pid, 300_000):
                time.sleep(2.0)

        def killed() -> None:
            bridge.kill()
            time.sleep(0.3)
            bridge.start()

        faults: dict[str, Fault] = {"locked": locked, "full": full, "slow": slow, "killed": killed}
        go_through(experiment, senders, bridge, faults, {"locked", "full"})
        check(sqlite_query(bridge.database), senders)
        replays(bridge, senders)


def test_c30_postgresql_locked_paused_restarted_or_killed_loses_nothing(experiment: Experiment) -> None:
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer(found))
        url = server.make("bridge")
        broker = stack.enter_context(Mosquitto(experiment.directory))
        bridge = BridgeProcess(experiment.directory, broker.url, store=url)
        stack.callback(bridge.kill)
        bridge.start()
        senders = stack.enter_context(Senders(broker.port))

        def locked() -> None:
            with psycopg.connect(url) as other:
                other.execute("LOCK TABLE streams IN ACCESS EXCLUSIVE MODE")
                nothing_is_told_before_it_is_there(lambda sql: other.execute(sql).fetchall(), senders)

        def paused() -> None:
            server.signal(signal.SIGSTOP)
            time.sleep(1.5)
            server.signal(signal.SIGCONT)

        def stopped() -> None:
            server.stop()
            told(bridge)  # shorter than this, the pool of connections only waits, and nothing but time is lost
            server.start()

        def killed() -> None:
            server.kill()
            told(bridge)  # shorter than this, the pool of connections only waits, and nothing but time is lost
            server.start()

        faults: dict[str, Fault] = {"locked": locked, "paused": paused, "stopped": stopped, "killed": killed}
        go_through(experiment, senders, bridge, faults, {"stopped", "killed"})

        def query(sql: str) -> list[tuple[Any, ...]]:
            with psycopg.connect(url) as db:
                return db.execute(sql).fetchall()

        check(query, senders)
        replays(bridge, senders)


def test_c30_the_control_that_acknowledges_before_the_commit_loses_records(experiment: Experiment) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(experiment.directory))
        bridge = BridgeProcess(experiment.directory, broker.url, module="tests.simulators.careless_bridge")
        stack.callback(bridge.kill)
        bridge.start()
        senders = stack.enter_context(Senders(broker.port))
        eventually(lambda: senders.devices[0].marks["event"] > 50, "records flow")
        with closing(sqlite3.connect(bridge.database, isolation_level=None, timeout=10.0)) as other:
            other.execute("BEGIN IMMEDIATE")
            (there,) = other.execute(MARK.format(senders.devices[0].gateway, senders.devices[0].epoch)).fetchone()
            eventually(lambda: senders.devices[0].marks["event"] > there, "it acknowledges what is not there")
            bridge.kill()
            other.execute("ROLLBACK")
        bridge.start()
        senders.rest()
        eventually(lambda: senders.waiting() == 0, "all is acknowledged", 60.0)
        time.sleep(0.5)  # it commits what it has acknowledged, if it can
        with pytest.raises(AssertionError, match="lost"):
            check(sqlite_query(bridge.database), senders)
