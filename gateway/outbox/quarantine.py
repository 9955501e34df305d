"""Puts a damaged store aside, so that the notice of it is in the next store whatever happens in between.

What is known of the damage is written down beside the file before anything is renamed, and taken away once there is a
store with the notice in it. A process that is killed between the two, or finds no room for a new store, leaves both to
the next opening.
"""

import os
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import structlog

from gateway.errors import OutboxError
from gateway.outbox.damage import SIDES, side, sync_directory
from gateway.outbox.remains import remains_of
from gateway.wire.messages import Notice

log = structlog.get_logger()

KEPT_ASIDE: Final = 3
"""Damaged stores that are kept, the newest without a number."""

_UNTOLD: Final = ".untold"


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """Why a store was put aside, and when (RFC 3339)."""

    reason: str
    at: str
    usurper: bool = False  # nothing is wrong with it: it lay in the place of the store that goes on


def write_down(file: Path, damage: Damage) -> None:
    """Keep, durably, that the store is about to be put aside for this.

    A disk that has no room for the words may have room for the name, which still leads to a notice. Where there is not
    even that, the notice hangs on this process alone: the store must be put aside all the same.
    """
    try:
        with side(file, _UNTOLD).open("wb") as stream:
            stream.write(msgspec.json.encode(damage))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        log.warning("quarantine_not_written_down", file=str(file), error=error.strerror or str(error))
    sync_directory(file.parent)


def written_down(file: Path) -> Damage | None:
    """Return why an earlier store was put aside, when no store with the notice of it has been made; None otherwise."""
    try:
        content = side(file, _UNTOLD).read_bytes()
    except OSError:
        return None
    try:
        return msgspec.json.decode(content, type=Damage)
    except msgspec.DecodeError:  # it was cut off: the disk was full, or the power went
        return Damage(reason=f"{file}: damaged", at="1970-01-01T00:00:00.000Z")


def cross_out(file: Path) -> None:
    """Forget what was written down: a store with the notice in it is there, or the damage has passed."""
    try:
        side(file, _UNTOLD).unlink(missing_ok=True)
    except OSError as error:  # it has no meaning beside a store, and is taken away at the next opening
        log.warning("quarantine_not_crossed_out", file=str(file), error=error.strerror or str(error))


def notice_of(damage: Damage, aside: Path) -> Notice:
    """Say what was put aside, and what could still be read of it."""
    # The log that lies beside one that took another's place may be that other's.
    remains = remains_of(aside, log=not damage.usurper)
    kept = f"kept as {aside.name}, records in it were not delivered" if aside.exists() else "it is gone"
    after = "the store it stood for goes on" if damage.usurper else "a new epoch begins"
    return Notice(
        code="store_quarantined",
        severity="error",
        detail=f"{damage.reason}; {kept}; {after}",
        at=damage.at,
        epoch=remains.epoch,
        missing=remains.missing,
    )


def quarantine(file: Path) -> Path:
    """Rename a damaged store and what belongs to it, or what an earlier try has left of that to do.

    Those put aside before move on to `.1` and `.2`, as far as there is no free name before; only what would come after
    that goes, so that damage in a loop cannot fill the disk. Returns the new name.

    Raises:
        OutboxError: it cannot be renamed.
    """
    aside = quarantined_name(file)
    try:
        if file.exists():
            _make_way(aside)
            file.rename(aside)  # first: a WAL without its file is ignored, a file without its WAL is not
        for end in SIDES:
            if side(file, end).exists():
                side(file, end).rename(side(aside, end))
        sync_directory(file.parent)
    except OSError as error:
        raise OutboxError(
            f"{file}: damaged, and cannot be renamed: {error.strerror}: make {file.parent} writable, "
            "or move the file away"
        ) from error
    return aside


def quarantined_name(file: Path) -> Path:
    """Return the name under which a damaged store is kept."""
    return file.with_name(f"{file.name}.quarantined")


def _make_way(aside: Path) -> None:
    """Free a name, with all that may lie beside it."""
    names = [aside, *(side(aside, f".{age}") for age in range(1, KEPT_ASIDE))]
    taken = next((at for at, name in enumerate(names) if not name.exists()), KEPT_ASIDE - 1)
    for newer, older in reversed([*pairwise(names[: taken + 1])]):
        for end in ("", *SIDES):
            side(older, end).unlink(missing_ok=True)
            if side(newer, end).exists():
                side(newer, end).rename(side(older, end))
    for end in SIDES:
        side(aside, end).unlink(missing_ok=True)
