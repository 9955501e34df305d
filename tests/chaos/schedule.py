"""Random schedules of faults: made from a seed, written down, carried out, and cut down when one has failed.

`FAULTS` are those of processes and links of a stand with a producer; `tests.chaos.sitefaults` has those of a whole
gateway.
"""

import json
import random
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tests.chaos.experiment import Experiment
from tests.chaos.netrig import NetRig
from tests.chaos.network import Weather, black_holed_mtu, emulated, loss, partition, rate, resets
from tests.chaos.stand import Stand
from tests.chaos.timing import pause

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that hold together for a while, and the calm after them."""

    faults: tuple[str, ...]
    seconds: float
    calm_seconds: float
    burst: bool = False


Schedule = tuple[Step, ...]
Fault = Callable[[S, str], AbstractContextManager[object]]
"""Takes the stand and the fault's own name; all is as before when its block ends."""


@contextmanager
def _killed_producer(stand: NetRig, _name: str) -> Iterator[None]:
    if stand.producer is not None:
        stand.producer.kill()
    try:
        yield
    finally:
        stand.start_producer()


@contextmanager
def killed_bridge(stand: Stand, _name: str) -> Iterator[None]:
    """Have no bridge."""
    stand.rig.bridge.kill()
    try:
        yield
    finally:
        stand.rig.start_bridge()


@contextmanager
def killed_broker(stand: Stand, _name: str) -> Iterator[None]:
    """Have no broker, and nothing of what it held."""
    stand.rig.broker.kill()
    try:
        yield
    finally:
        stand.start_broker()


@contextmanager
def paused(stand: Stand, name: str) -> Iterator[None]:
    """Stop the process that is named after the dash, as `pause-bridge`."""
    child = stand.processes().get(name.partition("-")[2])
    if child is None:  # killed by another fault of this step
        yield
        return
    child.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        if child.running:
            child.signal(signal.SIGCONT)


@contextmanager
def _weather(stand: NetRig, _name: str) -> Iterator[None]:
    weather = Weather(delay_ms=40, jitter_ms=10, loss=0.03, reorder=0.03, duplicate=0.03, corrupt=0.01)
    with emulated(stand.network, "device", weather, stand.directory / "weather.log"):
        yield


FAULTS: Final[Mapping[str, Fault[NetRig]]] = {
    "kill-producer": _killed_producer,
    "kill-bridge": killed_bridge,
    "kill-broker": killed_broker,
    "pause-producer": paused,
    "pause-bridge": paused,
    "pause-broker": paused,
    "cut-device": lambda stand, _: partition(stand.network, "device"),
    "cut-device-acks": lambda stand, _: partition(stand.network, "device", "to"),
    "cut-bridge": lambda stand, _: partition(stand.network, "bridge"),
    "cut-bridge-acks": lambda stand, _: partition(stand.network, "bridge", "from"),
    "reset-device": lambda stand, _: resets(stand.network, "device"),
    "loss-device": lambda stand, _: loss(stand.network, "device", 20),
    "slow-device": lambda stand, _: rate(stand.network, "device", 256),
    "black-hole": lambda stand, _: black_holed_mtu(stand.network, "bridge"),
    "weather": _weather,
}


def random_schedule(
    chance: random.Random,
    seconds: float,
    faults: Collection[str] = FAULTS.keys(),
    *,
    families: Sequence[Collection[str]] = (),
    alone: Set[str] = frozenset(),
    bursts: float = 0.3,
    longest_seconds: float = 3.0,
) -> Schedule:
    """Draw steps that take about so many seconds, and longer only to have one fault of each family.

    Args:
        chance: where every choice comes from.
        seconds: of faults and calm together; what it takes to start something again comes on top.
        faults: what there is to choose from; one step in three has two of them.
        families: the first steps have one fault of each, in any order.
        alone: faults that come by themselves.
        bursts: the share of steps that begin with a burst of records.
        longest_seconds: of a fault, and of the calm after it.
    """
    drawn = [chance.choice(sorted(family)) for family in families]
    chance.shuffle(drawn)
    steps: list[Step] = []
    total = 0.0
    while total < seconds or drawn:
        first = drawn.pop() if drawn else chance.choice(sorted(faults))
        others = sorted(set(faults) - alone - {first})
        more = [chance.choice(others)] if first not in alone and chance.random() >= 0.67 else []
        step = Step(
            faults=tuple(sorted([first, *more])),
            seconds=round(chance.uniform(0.1, longest_seconds), 2),
            calm_seconds=round(chance.uniform(0.0, longest_seconds), 2),
            burst=chance.random() < bursts,
        )
        steps.append(step)
        total += step.seconds + step.calm_seconds
    return tuple(steps)


def carry_out(
    stand: S,
    schedule: Schedule,
    faults: Mapping[str, Fault[S]],
    experiment: Experiment,
    burst: Callable[[], None] = lambda: None,
) -> None:
    """Run a schedule on a stand that is up. Every fault is over when this returns, also by an error."""
    for number, step in enumerate(schedule):
        experiment.log("step", number=number, **asdict(step))
        if step.burst:
            burst()
        with ExitStack() as stack:
            for fault in step.faults:
                stack.enter_context(faults[fault](stand, fault))
            pause(step.seconds)
        pause(step.calm_seconds)


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], tries: int) -> Schedule:
    """Return a shorter schedule that still fails, by leaving out halves, quarters, … of it (delta debugging)."""
    parts = 2
    while tries > 0 and len(schedule) > 1:
        size = -(-len(schedule) // parts)
        chunks = [schedule[at : at + size] for at in range(0, len(schedule), size)]
        for at in range(len(chunks)):
            rest = tuple(step for other, chunk in enumerate(chunks) if other != at for step in chunk)
            tries -= 1
            if fails(rest):
                schedule, parts = rest, max(parts - 1, 2)
                break
            if tries <= 0:
                return schedule
        else:
            if size == 1:
                return schedule
            parts = min(2 * parts, len(schedule))
    return schedule


def write(schedule: Schedule, file: Path) -> None:
    """Write a schedule down, so that a person can carry it out again."""
    file.write_text(json.dumps([asdict(step) for step in schedule], indent=1))


def read(file: Path) -> Schedule:
    """Read a schedule that was written down."""
    return msgspec.json.decode(file.read_bytes(), type=tuple[Step, ...])


def in_words(schedule: Sequence[Step]) -> str:
    """Return a line for each step."""
    return "\n".join(
        f"  {number}: {' + '.join(step.faults)} for {step.seconds} s{', with a burst' if step.burst else ''}, "
        f"then {step.calm_seconds} s of calm"
        for number, step in enumerate(schedule)
    )
