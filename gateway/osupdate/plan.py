"""What is next for an update of the system. Pure: what is seen comes in, one step goes out.

The restart is the one moment that nobody can undo by throwing something away, so everything is asked before it; and
after it the device may be on either system, whatever was intended.
"""

from dataclasses import dataclass

from gateway.osupdate.journal import Job
from gateway.osupdate.rauc import Slot

MAX_INSTALLS = 4
"""So often an installation may fail before the bundle is given up."""
MAX_SOURCE_TRIES = 6
"""So often a bundle that a person or a stick has named is looked for: two or three minutes, by the pauses between."""
MAX_RESTARTS = 2
"""So often the device may come back on the old system without a sign that the new one was tried at all."""


@dataclass(frozen=True, slots=True)
class Health:
    """The last word of the health check, of whichever boot. `verdict`: healthy, unhealthy, unprovisioned."""

    boot_id: str
    version: str
    verdict: str
    reasons: tuple[str, ...] = ()
    at: str = ""

    @property
    def healthy(self) -> bool:
        """Whether that boot was found healthy; a device without a configuration is."""
        return self.verdict in ("healthy", "unprovisioned")


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known now."""

    boot_id: str
    version: str  # that runs, "" if no image says so
    slot: str  # boot name of the slot that runs
    primary: str = ""  # of the one that is started next, "" if not known
    running: Slot | None = None
    other: Slot | None = None
    health: Health | None = None
    window_open: bool = True
    flushed: bool = True


@dataclass(frozen=True, slots=True)
class Bring:
    """Fetch the bundle, or see that it can be streamed."""


@dataclass(frozen=True, slots=True)
class Install:
    """Give the bundle to RAUC."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait, and say for what."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Restart the device."""


@dataclass(frozen=True, slots=True)
class Started:
    """The new system runs, and is on trial from now on."""


@dataclass(frozen=True, slots=True)
class OnTrial:
    """The new system runs, and has not been marked good."""

    reason: str


@dataclass(frozen=True, slots=True)
class Proven:
    """The new system runs and was marked good."""


@dataclass(frozen=True, slots=True)
class FellBack:
    """The old system runs again."""

    code: str
    reason: str


Next = Bring | Install | Hold | Restart | Started | OnTrial | Proven | FellBack


def next_step(job: Job, seen: Seen) -> Next:
    """Say what is next."""
    if job.stage == "wanted":
        return Bring()
    if job.stage == "ready":
        return _install(seen)
    if job.stage == "trial":
        return _on_trial(seen) if _runs(job, seen) else _fallen(job, seen)
    if _runs(job, seen):
        return Started()
    if job.stage == "installing":
        return _install(seen)
    return _before_restart(job, seen) if seen.boot_id == job.boot_id else _after_restart(job, seen)


def _install(seen: Seen) -> Next:
    """Install, but not over the last system that is known to be good: what runs may have to be left for it."""
    if seen.running is not None and seen.running.good is False:
        return Hold("trial", "what runs has not been marked good; the other slot is needed if it fails")
    return Install()


def _runs(job: Job, seen: Seen) -> bool:
    return seen.version == job.version and job.to_slot in ("", seen.slot)


def _before_restart(job: Job, seen: Seen) -> Next:
    if seen.other is not None and seen.other.good is False:
        return _fallen(job, seen)  # its tries are used up, or somebody has marked it bad: nothing would start it
    if not seen.window_open:
        return Hold("window", "the restart waits for a window of os.windows")
    if not seen.flushed:
        return Hold("outbox", "the restart waits until the cloud has what lies in the outbox")
    return Restart()


def _after_restart(job: Job, seen: Seen) -> Next:
    """The device was restarted, and the old system runs: the new one was tried in vain, or was never tried."""
    if _unhealthy(job, seen) or job.restarts >= MAX_RESTARTS:
        return _fallen(job, seen)
    return _before_restart(job, seen)


def _on_trial(seen: Seen) -> Next:
    if seen.running is not None and seen.running.good is False:
        return OnTrial("the running slot is not marked good yet")
    health = seen.health
    if health is None or health.boot_id != seen.boot_id:
        return OnTrial("its health is being watched")
    if not health.healthy:
        return OnTrial("it is not healthy: " + "; ".join(health.reasons))
    return Proven()


def _unhealthy(job: Job, seen: Seen) -> bool:
    health = seen.health
    return health is not None and health.version == job.version and not health.healthy and health.at != job.health_at


def _fallen(job: Job, seen: Seen) -> FellBack:
    """Say why the old system runs again, as exactly as can be known."""
    if _unhealthy(job, seen):
        assert seen.health is not None
        return FellBack("health", "; ".join(seen.health.reasons) or "its health check failed without a word")
    slot = seen.other.bootname if seen.other is not None else job.to_slot
    if job.stage == "trial":
        return FellBack("crash", f"it ran, and went down before it was marked good; slot {slot} was given up")
    if seen.other is not None and seen.other.good is False:
        return FellBack(
            "no-boot",
            f"it did not come up: its tries to boot are used up, slot {slot} is marked bad, and it left no word about "
            "its health (a kernel that panics or a root that does not verify looks like this)",
        )
    if seen.slot and seen.primary == seen.slot:
        return FellBack(
            "not-started",
            f"slot {slot} is not the one that starts any more: it could not start, as where a system that was good "
            f"before panics each time, or somebody has chosen slot {seen.slot}",
        )
    return FellBack(
        "not-started", f"after {job.restarts} restarts the device still runs {seen.version or 'the old system'}"
    )
