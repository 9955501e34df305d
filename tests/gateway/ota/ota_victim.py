"""Does one update from the journal's first word to its last, on one thread, to be killed in the middle of it."""

import hashlib
import logging
import sys
from pathlib import Path

import structlog

from gateway.config import Trial
from gateway.inference.model import Model
from gateway.ota.agent import OtaAgent
from gateway.wire.manifest import MANIFEST_FILE
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import Device
from tests.simulators.release_repository import ReleaseRepository

OLD, NEW = "1.0.0", "2.0.0"
ATTEMPTS = 4


class Stopped:
    """A pipeline between two samples: it takes each model at once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.looking_seconds = 0.0

    def swap(self, model: Model, timeout_seconds: float = 0.0) -> Model:
        """Exchange."""
        old, self.model = self.model, model
        return old

    def abandon(self, reason: str) -> None:
        """Never happens here."""


def prepare(root: Path) -> None:
    """Write the releases: the old one lies on the device, the new one is published."""
    release(root / "device/releases", OLD, scorer(1.0))
    release(root / "published", NEW, scorer(1.0))


def device(root: Path) -> Device:
    """Open the device; its repository has the same content key each time."""
    repository = ReleaseRepository(root / "repository")
    folder = root / "published/probe" / NEW
    digest = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
    repository.keys[digest] = hashlib.sha256(digest.encode()).digest()
    repository.publish(folder)
    return Device(root / "device", repository, trial=Trial(seconds=0.0, min_inferences=0))


def update(made: Device) -> OtaAgent:
    """Start as a gateway does, take the wish and carry it out."""
    made.repository.grant(made.vault)
    made.bay.host = Stopped(made.load(made.agent.run_begins("motor")))
    made.desire(NEW, token=1)
    for _ in range(ATTEMPTS):
        made.agent.tick()
        made.agent.fetch_round()
    made.agent.run_ended("motor")
    return made.agent


def main() -> None:
    """Do it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    update(device(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
