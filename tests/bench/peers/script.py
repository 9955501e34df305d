"""What is done to every system at the same instants, drawn from a seed, and what came of it."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Literal

from tests.bench.peers.arena import Arena
from tests.bench.peers.readings import Leaf
from tests.bench.peers.systems import System

FaultKind = Literal["gateway-killed", "broker-killed", "link-cut", "gateway-killed-while-cut", "disk-full-while-cut"]
HOW_OFTEN: dict[FaultKind, int] = {
    "gateway-killed": 3,
    "broker-killed": 3,
    "link-cut": 2,
    "gateway-killed-while-cut": 2,
    "disk-full-while-cut": 1,
}
FIRST_AT_SECONDS = 4.0
LENGTH_SECONDS = (3.0, 8.0)
PAUSE_SECONDS = (5.0, 9.0)
LAST_PAUSE_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that begins so many seconds after the first reading, and lasts so long."""

    at: float
    kind: FaultKind
    seconds: float


def plan(seed: int) -> list[Fault]:
    """Draw order, instants and lengths of the faults."""
    chance = random.Random(seed)
    kinds = [kind for kind, times in HOW_OFTEN.items() for _ in range(times)]
    chance.shuffle(kinds)
    faults, at = [], FIRST_AT_SECONDS
    for kind in kinds:
        seconds = chance.uniform(*LENGTH_SECONDS)
        faults.append(Fault(round(at, 2), kind, round(seconds, 2)))
        at += seconds + chance.uniform(*PAUSE_SECONDS)
    return faults


def length(faults: list[Fault]) -> float:
    """Return how long readings are offered, in seconds."""
    return faults[-1].at + faults[-1].seconds + LAST_PAUSE_SECONDS


def perform(faults: list[Fault], arena: Arena, system: System, leaf: Leaf, rate: float) -> list[FaultKind]:
    """Offer readings and do what was drawn; returns the kinds that could not be done here."""
    left_out: list[FaultKind] = []
    began = time.monotonic()
    offering = Thread(target=leaf.offer, args=(int(rate * length(faults)), rate), name="bench-leaf", daemon=True)
    offering.start()
    for fault in faults:
        time.sleep(max(0.0, began + fault.at - time.monotonic()))
        if fault.kind == "disk-full-while-cut" and not arena.disk.can_fill:
            left_out.append(fault.kind)
        else:
            _DEEDS[fault.kind](fault.seconds, arena, system)
    offering.join()
    return left_out


def _kill_gateway(_seconds: float, _arena: Arena, system: System) -> None:
    system.kept.kill()


def _kill_broker(seconds: float, arena: Arena, _system: System) -> None:
    arena.kill_cloud_broker(seconds)


def _cut(seconds: float, arena: Arena, _system: System) -> None:
    arena.link.cut()
    time.sleep(seconds)
    arena.link.heal()


def _kill_while_cut(seconds: float, arena: Arena, system: System) -> None:
    """The worst moment for what is kept in memory: nothing of the last seconds has left the device."""
    arena.link.cut()
    time.sleep(seconds)
    system.kept.kill()
    time.sleep(0.5)
    arena.link.heal()


def _fill_while_cut(seconds: float, arena: Arena, _system: System) -> None:
    arena.link.cut()
    time.sleep(0.5)
    arena.disk.fill()
    time.sleep(seconds)
    arena.disk.free()
    time.sleep(0.5)
    arena.link.heal()


_DEEDS: dict[FaultKind, Callable[[float, Arena, System], None]] = {
    "gateway-killed": _kill_gateway,
    "broker-killed": _kill_broker,
    "link-cut": _cut,
    "gateway-killed-while-cut": _kill_while_cut,
    "disk-full-while-cut": _fill_while_cut,
}
