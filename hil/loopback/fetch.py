"""Get what the demo and the tests with real input need: a clip, a detector, and two recordings with faults in them.

`python -m hil.loopback.fetch` puts everything below var/demo. What is there and whole is kept; each file from
elsewhere is checked against a fixed SHA-256. Progress goes to stderr.
"""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import click

from hil.loopback.assets.clip import PEDESTRIANS, fetch_clip, present_clip
from hil.loopback.assets.detector import NAME, VERSION, detector_directory, detector_is_there, make_detector
from hil.loopback.assets.obtaining import FetchError, Say
from hil.loopback.assets.recordings import MAKERS, make_recordings, recording_is_there

DIRECTORY: Final = Path("var/demo")
_LICENCE: Final = Path(__file__).resolve().parents[2] / "LICENSE"  # the same text: Apache-2.0


@dataclass(frozen=True, slots=True)
class Step:
    """One asset: how to tell that it is there, and how to get it."""

    name: str
    from_elsewhere: bool
    find: Callable[[], list[Path]]  # the files that are there and whole; none: something is to be done
    get: Callable[[], object]


def steps(directory: Path, say: Say) -> list[Step]:
    """Return what is needed, in order: the clip calibrates the detector."""
    data, models = directory / "data", directory / "models"

    def recordings() -> list[Path]:
        present = [data / name for name in MAKERS if recording_is_there(data, name)]
        return present if len(present) == len(MAKERS) else []

    def clip() -> list[Path]:
        present = present_clip(data)
        return [present] if present else []

    def detector() -> list[Path]:
        return sorted(detector_directory(models).iterdir()) if detector_is_there(models) else []

    def get_detector() -> Path:
        present = present_clip(data)
        if present is None:
            raise FetchError(f"needs the clip {PEDESTRIANS.file} first, which is not there")
        return make_detector(models, present, _LICENCE.read_bytes(), say)

    return [
        Step("demo recordings", from_elsewhere=False, find=recordings, get=lambda: make_recordings(data, say)),
        Step("clip", from_elsewhere=True, find=clip, get=lambda: fetch_clip(data, say)),
        Step(f"{NAME} {VERSION}", from_elsewhere=True, find=detector, get=get_detector),
    ]


def fetch(todo: list[Step], say: Say, *, offline: bool) -> list[str]:
    """Get what is missing; one asset that cannot be had does not keep the others away.

    Returns:
        What could not be had, and why.
    """
    failures = []
    for step in todo:
        present = step.find()
        if present:
            say(f"==> {step.name}: there ({_described(present)})")
            continue
        if offline and step.from_elsewhere:
            failures.append(
                f"{step.name}: not there, and --offline forbids to fetch it; run `python -m hil.loopback.fetch` once "
                "with a network, or copy var/demo from a machine that has it"
            )
            continue
        say(f"==> {step.name}: {'fetching' if step.from_elsewhere else 'making'}")
        started = time.monotonic()
        try:
            step.get()
        except FetchError as error:
            failures.append(f"{step.name}: {error}")
            continue
        say(f"    {step.name}: ready ({_described(step.find())}, {time.monotonic() - started:.1f} s)")
    return failures


def _described(files: list[Path]) -> str:
    size = sum(file.stat().st_size for file in files) / 1e6
    named = ", ".join(file.name for file in files) if len(files) <= 2 else f"{len(files)} files in {files[0].parent}"
    return f"{named}, {size:.1f} MB"


@click.command()
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=DIRECTORY, show_default=True
)
@click.option("--offline", is_flag=True, help="Only make what needs no network, and tell what is missing.")
def main(directory: Path, *, offline: bool) -> None:
    """Get the clip, the detector and the recordings of the demo."""

    def say(text: str) -> None:
        click.echo(text, err=True)

    signal.signal(signal.SIGTERM, _leave)
    failures = fetch(steps(directory.resolve(), say), say, offline=offline)
    for failure in failures:
        say(f"fetch: {failure}")
    sys.exit(1 if failures else 0)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what signal calls
    """Leave through the `with` blocks, so that temporary directories go."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
