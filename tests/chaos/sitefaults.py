"""Faults of a whole site: processes, links, disk, clock, TPM, and an update that is killed while it is under way.

Each is a context manager over a `SecuredStand`, as `tests.chaos.schedule` wants them.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.chaos.schedule import Fault, killed_bridge, killed_broker, paused
from tests.chaos.securedstand import SecuredStand
from tests.chaos.timing import pause

_DAY: Final = 86_400.0
_SLOW_SYNC_SECONDS: Final = 0.2
_UNDER_WAY: Final = ("waiting", "fetching", "checking", "trial")
"""How an update goes, in order."""
_OVER: Final = ("running", "reverted", "refused", "blocked")
_WITHIN_PHASE_SECONDS: Final = 0.5


# ---- processes -------------------------------------------------------------------------------------------


@contextmanager
def _killed_gateway(stand: SecuredStand, _name: str) -> Iterator[None]:
    stand.rig.gateway.kill()
    try:
        yield
    finally:
        stand.rig.start_gateway()


@contextmanager
def _paused_gateway(stand: SecuredStand, name: str) -> Iterator[None]:
    with stand.excused(), paused(stand, name):
        yield


# ---- links -----------------------------------------------------------------------------------------------


@contextmanager
def _reset(stand: SecuredStand, _name: str) -> Iterator[None]:
    stand.link.reset()
    yield
    stand.link.reset()


# ---- the disk of the gateway -----------------------------------------------------------------------------


@contextmanager
def _slow_disk(stand: SecuredStand, _name: str) -> Iterator[None]:
    stand.disk.set(fsync_seconds=_SLOW_SYNC_SECONDS)
    try:
        yield
    finally:
        stand.disk.set(fsync_seconds=0.0)


@contextmanager
def _frozen_disk(stand: SecuredStand, _name: str) -> Iterator[None]:
    stand.disk.set(frozen=True)
    try:
        yield
    finally:
        stand.disk.set(frozen=False)


@contextmanager
def _full_disk(stand: SecuredStand, _name: str) -> Iterator[None]:
    other = stand.disk.mountpoint / "other"
    _fill(other)
    try:
        yield
    finally:
        other.unlink()


def _fill(file: Path) -> None:
    """Take every block that is left."""
    with file.open("ab", buffering=0) as stream:
        for size in (256 * 1024, 4096):
            with contextlib.suppress(OSError):  # ENOSPC is the aim
                while stream.write(bytes(size)):
                    pass
        os.fsync(stream.fileno())


# ---- the clock of the gateway ----------------------------------------------------------------------------


@contextmanager
def _stepped_clock(stand: SecuredStand, name: str) -> Iterator[None]:
    stand.clock.step(10 * _DAY if name == "clock-forward" else -10 * _DAY)
    try:
        yield
    finally:
        stand.clock.true()


# ---- its TPM ---------------------------------------------------------------------------------------------


@contextmanager
def _tpm_away(stand: SecuredStand, _name: str) -> Iterator[None]:
    stand.tpm.kill()
    try:
        yield
    finally:
        stand.site.boot()


@contextmanager
def _tpm_hangs(stand: SecuredStand, _name: str) -> Iterator[None]:
    stand.tpm.child.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stand.tpm.child.signal(signal.SIGCONT)


# ---- updates ---------------------------------------------------------------------------------------------


@contextmanager
def _killed_in_update(stand: SecuredStand, _name: str) -> Iterator[None]:
    """Kill the gateway soon after an update has come to a phase, whichever: fetched, checked and sealed, on trial."""
    version, chance = stand.publish(), stand.experiment.random
    phases = (*_UNDER_WAY[chance.randrange(len(_UNDER_WAY)) :], *_OVER)  # a short phase may be missed
    stand.until(lambda: stand.update_phase(version) in phases, f"{version} is {' or '.join(phases)}", 120.0)
    pause(chance.uniform(0.0, _WITHIN_PHASE_SECONDS))
    stand.experiment.log("killed_in_update", version=version, phase=stand.update_phase(version))
    with _killed_gateway(stand, "kill-gateway"):
        yield


FAULTS: Final[Mapping[str, Fault[SecuredStand]]] = {
    "kill-gateway": _killed_gateway,
    "kill-bridge": killed_bridge,
    "kill-broker": killed_broker,
    "pause-gateway": _paused_gateway,
    "pause-bridge": paused,
    "pause-broker": paused,
    "cut-link": lambda stand, _: stand.link.cut("there", "back"),
    "cut-link-acks": lambda stand, _: stand.link.cut("back"),
    "reset-link": _reset,
    "slow-disk": _slow_disk,
    "frozen-disk": _frozen_disk,
    "full-disk": _full_disk,
    "clock-forward": _stepped_clock,
    "clock-back": _stepped_clock,
    "tpm-away": _tpm_away,
    "tpm-hangs": _tpm_hangs,
    "kill-in-update": _killed_in_update,
}

FAMILIES: Final[Sequence[tuple[str, ...]]] = (
    ("kill-gateway",),
    ("kill-bridge",),
    ("kill-broker",),
    ("cut-link", "cut-link-acks", "reset-link"),
    ("slow-disk", "frozen-disk"),
    ("full-disk",),
    ("clock-forward", "clock-back"),
    ("tpm-away", "tpm-hangs"),
    ("kill-in-update",),
)
"""One of each is in every schedule, however short: it is the cascade that is asked for."""

ALONE: Final = frozenset({"frozen-disk", "tpm-hangs", "kill-in-update"})
"""They come by themselves. A process that waits for a frozen disk does not die of SIGKILL, a swtpm that is stopped
cannot be started again, and an update needs everything else to begin."""
