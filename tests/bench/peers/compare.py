"""Runs every system through the same three things: starts, a backlog to drain, and the kill script."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from hil.loopback.children import RigError
from tests.bench.peers.arena import Arena, start_broker
from tests.bench.peers.mosquitto import MosquittoBridge, MosquittoDefaults
from tests.bench.peers.readings import TOPIC, Arrivals, Fate, Leaf, fate, number_of
from tests.bench.peers.script import length, perform, plan
from tests.bench.peers.sluice import Sluice
from tests.bench.peers.systems import Consumer, System
from tests.bench.peers.thingsboard import NotInstalledError, ThingsBoard, ThingsBoardDefaults
from tests.bench.table import Row, at_most, grid, row

SYSTEMS: tuple[type[System], ...] = (Sluice, ThingsBoard, ThingsBoardDefaults, MosquittoBridge, MosquittoDefaults)
NAMES = [system.name for system in SYSTEMS]

STARTS = 3
BACKLOG = 20_000
BACKLOG_RATE = 1000.0
"""Every system keeps up with this."""
RATE = 200.0
IDLE_SECONDS = 60.0
"""Nothing for so long, and nothing more is coming: longer than any of them waits between two tries."""
AT_MOST_SECONDS = 480.0
MIB = 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Drained:
    start_seconds: list[float]
    first_after_seconds: float | None
    rate: float | None
    lost_in_drain: int
    doubles_in_drain: int
    idle_mib: float
    peak_mib: float
    cloud_mib: float | None


@dataclass(frozen=True, slots=True)
class _Survived:
    fate: Fate
    kills: int
    exits: int
    left_out: list[str]
    stored_twice: int | None
    given_up: int | None


def compare(seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Measure the named systems, or all, one after the other."""
    faults = plan(seed)
    measured: dict[str, dict[str, Any]] = {}
    for system in SYSTEMS:
        if names and system.name not in names:
            continue
        click.echo(f"    {system.title}", err=True)
        try:
            drained = _in_arena(system, _drain)
            survived = _in_arena(system, lambda arena, under: _survive(arena, under, seed), small_disk=True)
        except (NotInstalledError, RigError) as error:
            measured[system.name] = {"title": system.title, "version": system.version(), "skipped": str(error)}
            continue
        measured[system.name] = {
            "title": system.title,
            "version": system.version(),
            **asdict(drained),
            **asdict(survived.fate),
            "kills": survived.kills,
            "exits_of_its_own": survived.exits,
            "faults_left_out": survived.left_out,
            "stored_twice": survived.stored_twice,
            "given_up_by_name": survived.given_up,
        }
        click.echo(f"      {measured[system.name]}", err=True)
    bound = _bare()
    return {
        "seed": seed,
        "faults": [asdict(fault) for fault in faults],
        "offered": {"rate": RATE, "seconds": round(length(faults), 1), "backlog": BACKLOG},
        "bare_paho_rate": bound,
        "systems": measured,
        "table": _table(measured, bound, seed),
        "rows": _rows(measured.get(Sluice.name, {})),
    }


def _rows(ours: dict[str, Any]) -> list[Row]:
    """Judge our own share: the others are measured, and nothing is aimed at for them."""
    if "skipped" in ours:
        return [at_most(f"systems that could not be measured: {ours['skipped'].splitlines()[0]}", 1, 0)]
    if not ours:
        return []
    named = ours.get("given_up_by_name") or 0
    return [
        at_most(
            f"readings lost in the kill script and not given up by name, of {ours['accepted']:,}",
            max(0, ours["lost"] - named),
            0,
        ),
        row("of them given up by name, as quotas say, while the disk was full", f"{named:,}"),
        at_most(f"readings lost in the drain, of {BACKLOG:,}", ours["lost_in_drain"], 0),
        at_most("records stored twice in the kill script", ours["stored_twice"], 0),
        at_most(
            "readings that became two records in the kill script, with no kill between them",
            ours["doubles"] - ours["doubles_over_kill"],
            0,
        ),
        at_most(
            "first reading after the broker of the cloud is back", _or_never(ours["first_after_seconds"]), 10, unit="s"
        ),
    ]


def _or_never(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds


def _in_arena(system: type[System], work: Callable[[Arena, System], T], *, small_disk: bool = False) -> T:
    with (
        tempfile.TemporaryDirectory(prefix="sluice-peers-") as directory,
        Arena(Path(directory) / "a", own_local_broker=system.is_local_broker, small_disk=small_disk) as arena,
        system(arena) as under,
    ):
        return work(arena, under)


def _drain(arena: Arena, system: System) -> _Drained:
    """Start it a few times while readings come; then let a backlog gather without the cloud's broker, and drain."""
    with Leaf(arena.local_port) as leaf:
        starts = [_started(leaf, system, system.kept.starts[0])]
        for _ in range(STARTS - 1):
            starts.append(_started(leaf, system, system.kept.restart()))
        time.sleep(3.0)
        idle = system.kept.resident_bytes
        # An outage that everybody is told of at once: a silent one makes one of the systems lose, which is no drain.
        arena.cloud_broker.stop()
        before = leaf.offered
        leaf.offer(BACKLOG, BACKLOG_RATE)
        leaf.wait()
        time.sleep(5.0)  # for whoever takes readings in later than it has answered for them
        healed = time.monotonic()
        start_broker(arena.cloud_broker, arena.cloud_port)
        backlog = {number: at for number, at in leaf.accepted.items() if number > before}
        _wait_for(system.arrivals, backlog)
        arrived = system.arrivals.first()
    times = sorted(arrived[number] for number in backlog if arrived.get(number, 0.0) >= healed)
    result = fate(backlog, arrived, system.arrivals.repeats(), system.kept.outages)
    cloud = system.cloud_bytes()
    return _Drained(
        start_seconds=[round(each, 2) for each in starts],
        first_after_seconds=round(times[0] - healed, 2) if times else None,
        rate=round(len(times) / max(times[-1] - times[0], 0.02)) if times else None,
        lost_in_drain=result.lost,
        doubles_in_drain=result.doubles - result.doubles_over_kill,
        idle_mib=round(idle / MIB, 1),
        peak_mib=round(system.kept.peak_bytes / MIB, 1),
        cloud_mib=None if cloud is None else round(cloud / MIB, 1),
    )


def _started(leaf: Leaf, system: System, since: float) -> float:
    """Offer readings until one arrives that was accepted after `since`; returns the seconds from there on."""
    deadline = time.monotonic() + 120.0
    while True:
        leaf.offer(5, 50.0)
        fresh = {number for number, at in leaf.accepted.items() if at > since}
        arrived = [at for number, at in system.arrivals.first().items() if number in fresh]
        if arrived:
            return min(arrived) - since
        if time.monotonic() > deadline:
            raise RigError(f"{system.title}: no reading comes through; its output:\n{system.kept.child.tail()}")


def _survive(arena: Arena, system: System, seed: int) -> _Survived:
    with Leaf(arena.local_port) as leaf:
        _started(leaf, system, time.monotonic())
        time.sleep(3.0)
        before = leaf.offered  # what was offered before the system was up tells of its start only
        left_out = perform(plan(seed), arena, system, leaf, RATE)
        leaf.wait()
        offered = {number: at for number, at in leaf.accepted.items() if number > before}
        _wait_for(system.arrivals, offered)
        kept = system.kept
        result = fate(offered, system.arrivals.first(), system.arrivals.repeats(), kept.outages)
    return _Survived(
        result,
        len(kept.kills),
        kept.exits,
        list(left_out),
        stored_twice=system.stored_twice(),
        given_up=system.given_up(),
    )


def _wait_for(arrivals: Arrivals, numbers: dict[int, float]) -> None:
    """Wait until all have arrived, or nothing has for a while."""
    began = time.monotonic()
    while not numbers.keys() <= arrivals.first().keys():
        now = time.monotonic()
        if now - max(arrivals.latest, began) > IDLE_SECONDS or now - began > AT_MOST_SECONDS:
            return
        time.sleep(0.2)


def _bare() -> int:
    """Return the readings a second that a loop over a list brings to a consumer with QoS 1: the upper bound."""
    with tempfile.TemporaryDirectory() as directory, Arena(Path(directory) / "a", own_local_broker=True) as arena:
        arrivals = Arrivals()
        with Consumer(arena.cloud_port, [TOPIC], lambda _, message: arrivals.add([number_of(message.payload)])):
            command = [sys.executable, "-m", "tests.bench.peers.bare", str(arena.cloud_port), str(BACKLOG)]
            subprocess.run(command, check=True)
            _wait_for(arrivals, dict.fromkeys(range(1, BACKLOG + 1), 0.0))
            times = arrivals.first().values()
            seconds = max(times) - min(times)
    return round(BACKLOG / seconds)


def _table(measured: dict[str, dict[str, Any]], bound: int, seed: int) -> str:
    head = [
        "",
        "version",
        "start until a reading arrives",
        f"drain of {BACKLOG:,} readings",
        "lost in the drain",
        "resident, idle / peak",
        f"kill script, seed {seed}: accepted",
        "lost",
        "while the gateway was down",
        "in its hands when killed",
        "otherwise",
        "arrived again, over a kill",
        "arrived again otherwise",
    ]
    body = []
    for each in measured.values():
        if "skipped" in each:
            body.append(
                [each["title"], each["version"], f"not measured: {each['skipped'].splitlines()[0]}", *[""] * 10]
            )
            continue
        rate = (
            "none arrived"
            if each["rate"] is None
            else f"{each['rate']:,}/s, first after {each['first_after_seconds']} s"
        )
        body.append(
            [
                each["title"],
                each["version"],
                f"{statistics.median(each['start_seconds']):.1f} s",
                rate,
                f"{each['lost_in_drain']:,}",
                f"{each['idle_mib']:.0f} / {each['peak_mib']:.0f} MiB",
                f"{each['accepted']:,}",
                f"**{each['lost']:,}**",
                f"{each['lost_while_down']:,}",
                f"{each['lost_in_hand']:,}",
                f"{each['lost_otherwise']:,}",
                f"{each['doubles_over_kill']:,}",
                f"{each['doubles'] - each['doubles_over_kill']:,}",
            ]
        )
    body.append(["paho loop over a list, a message a reading, no store", "", "", f"{bound:,}/s", *[""] * 9])
    return grid(head, body)
