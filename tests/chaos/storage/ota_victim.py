"""A gateway that updates a model: `ota_victim DEVICE PUBLISHED [--control DISK]`.

It is the device's own code from the twin to the proof of the release: metadata, patch, child, seal, journal, swap. On a
recorded disk it begins with a release that came over the air, and has no other; then it marks in the log of the disk

    begin                           everything until here is on the disk
    wish VERSION                    the update begins
    done VERSION                    the release serves, has proved itself, and the journal says so

Beside it another program of the device syncs a file of its own again and again, as the outbox does: so the file
system writes its own journal at any moment, and not only when the update asks for it.

Without a disk it updates once, where `first_release` has been, and is to be killed in the middle of it.

Knobs: with `--careless` nothing that updates write is synced; with `--make-room-first` the old release is removed
before the new one is stored.
"""

import argparse
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.config import Trial
from gateway.errors import GatewayError
from gateway.inference.model import Model
from gateway.vault.store import ReleaseDirectory, SealedStore
from tests.chaos.storage.fusedisk import Teller
from tests.gateway.ota.releases import release
from tests.gateway.ota.rig import NAME, Device, installed
from tests.simulators.published_repository import WINDOW, PublishedRepository, golden, weights

FACTORY: Final = "0.9.0"
FIRST: Final = "1.0.0"
BIASES: Final = {FIRST: 0.0, "2.0.0": 0.5, "3.0.0": 1.0}
WISHES: Final = tuple(BIASES)[1:]
ROUNDS: Final = 6
SYNC_SECONDS: Final = 0.05
OTHERS: Final = "others"
"""The file of the other program, beside what is the device's."""

Sync = Callable[[int], None]


class Stopped:
    """A pipeline between two samples: it takes each model at once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.looking_seconds = 0.0

    def swap(self, model: Model, timeout_seconds: float = 0.0) -> Model:
        """Exchange."""
        old, self.model = self.model, model
        return old

    def abandon(self, reason: str, error: GatewayError | None = None) -> None:
        """Never happens here."""


def device(root: Path, published: Path) -> Device:
    """Open the device as a start of the gateway does."""
    return Device(root, PublishedRepository(published, root / "state"), trial=Trial(seconds=0.0, min_inferences=0))


def begin(made: Device) -> Model:
    """Let the pipeline load what it is to run."""
    made.repository.grant(made.vault)
    model = made.load(made.agent.run_begins("motor"))
    made.bay.host = Stopped(model)
    return model


def update(made: Device, version: str) -> None:
    """Take the wish and carry it out, until the release has proved itself."""
    made.desire(version, token=[*BIASES].index(version) + 1, number=[*BIASES].index(version) + 1)
    for _ in range(ROUNDS):
        made.agent.tick()
        if made.slot.active == installed(version) and made.slot.trial is None:
            break
        made.agent.fetch_round()
    made.agent.run_ended("motor")


def first_release(root: Path, published: Path) -> None:
    """Bring the first release over the air, and take away the one that was there before."""
    release(root / "releases", FACTORY, weights(-1.0), golden=golden(-1.0), spec=WINDOW)
    made = device(root, published)
    begin(made).close()
    update(made, FIRST)
    made.bay.let_go()
    shutil.rmtree(root / "releases")
    for name in ("models", "state/models"):
        shutil.rmtree(root / name / NAME / FACTORY, ignore_errors=True)


def sync_for_ever(file: Path, sync: Sync, stopped: threading.Event) -> None:
    """Be the outbox."""
    with file.open("wb") as stream:
        while not stopped.wait(SYNC_SECONDS):
            stream.write(b"record")
            stream.flush()
            sync(stream.fileno())


def make_room_first() -> None:
    """The protection taken away: the release that runs goes before the one that follows it is there."""
    whole = SealedStore.add

    def add(store: SealedStore, release: ReleaseDirectory, *rest: Any) -> ReleaseDirectory:
        for directory in (store.directory / release.manifest.name).iterdir():
            shutil.rmtree(directory)
        return whole(store, release, *rest)

    SealedStore.add = add  # type: ignore[assignment,method-assign]  # a function of the same shape


def recorded(arguments: argparse.Namespace) -> None:
    """Live on a recorded disk, and end by SIGKILL."""
    tell = Teller(arguments.control)
    first_release(arguments.device, arguments.published)
    sync = os.fsync
    os.sync()
    tell.mark("begin")
    if arguments.careless:
        vars(os)["fsync"] = lambda _descriptor: None
    others = (arguments.device / OTHERS, sync, threading.Event())
    threading.Thread(target=sync_for_ever, args=others, daemon=True).start()
    for version in WISHES:
        tell.mark(f"wish {version}")
        once(arguments.device, arguments.published, version)
        tell.mark(f"done {version}")
    os.kill(os.getpid(), signal.SIGKILL)


def once(root: Path, published: Path, version: str) -> None:
    """Start, and update to one release."""
    made = device(root, published)
    begin(made)
    update(made, version)
    if made.serving != version or made.slot.trial is not None:
        raise AssertionError(f"{version} does not serve: {made.slot}")


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser()
    for name in ("device", "published"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--control", type=Path)
    parser.add_argument("--careless", action="store_true")
    parser.add_argument("--make-room-first", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if arguments.make_room_first:
        make_room_first()
    if arguments.control is not None:
        recorded(arguments)
    else:
        once(arguments.device, arguments.published, WISHES[0])


if __name__ == "__main__":
    main()
