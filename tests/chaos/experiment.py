"""One experiment: its seed, its directory, how long it is to be, and a log of what it did and when."""

import json
import random
import time
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Final

FULL_MINUTES: Final = 60.0
"""The counts of the long form are meant for so many minutes; other lengths scale them."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What a test of the catalogue is given.

    Every random choice comes from `random`, which is seeded by the seed of the run and the name of the experiment
    alone: one experiment run by itself repeats what it did among all the others.
    """

    name: str
    seed: int
    random: random.Random
    directory: Path  # short, because sockets live below it; removed when the experiment has passed
    minutes: float | None = None  # None: the short form
    _began_ns: int = field(default_factory=time.monotonic_ns)

    @classmethod
    def named(cls, name: str, seed: int, directory: Path, minutes: float | None = None) -> "Experiment":
        """Begin an experiment."""
        return cls(name, seed, random.Random(f"{seed}/{name}"), directory, minutes)

    @property
    def long(self) -> bool:
        """Whether this is the long form."""
        return self.minutes is not None

    @property
    def log_file(self) -> Path:
        """What was done and seen, a JSON object a line, with `at` in seconds since the experiment began."""
        return self.directory / "experiment.jsonl"

    def scaled(self, short: int, long: int) -> int:
        """Return a count: `short` in the short form; `long` for an hour of the long form, and never below `short`."""
        if self.minutes is None:
            return short
        return max(short, round(long * self.minutes / FULL_MINUTES))

    def seconds(self, short: float, minutes_share: float = 1.0) -> float:
        """Return a length of time: `short` in the short form, else a share of the minutes that were asked for."""
        return short if self.minutes is None else max(short, self.minutes * 60.0 * minutes_share)

    def log(self, kind: str, **fields: object) -> None:
        """Append a line to the log."""
        at = round((time.monotonic_ns() - self._began_ns) / 1e9, 4)
        with self.log_file.open("a") as file:
            file.write(json.dumps({"at": at, "kind": kind, **fields}, default=_plain) + "\n")

    def repeat(self) -> str:
        """Return the command that does the same again."""
        minutes = "" if self.minutes is None else f" --minutes {self.minutes:g}"
        function = self.name.partition("-")[0]  # what -k takes; the parameters of a test are not in it
        return f'make test-chaos ARGS="--seed {self.seed}{minutes} -k {function}"'


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
