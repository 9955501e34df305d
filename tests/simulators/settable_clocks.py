"""All clocks of a machine, moved by hand: wall clock, uptime, boot."""

from dataclasses import dataclass

from gateway.outbox.ages import Clocks

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


@dataclass
class SettableClocks:
    """Time passes only by `pass_seconds`; the wall clock can be set without time passing."""

    wall_ns: int = 1_790_000_000 * SECOND
    uptime_ns: int = 1_000 * SECOND
    boot: int = 1

    def pass_seconds(self, seconds: float) -> None:
        self.wall_ns += int(seconds * SECOND)
        self.uptime_ns += int(seconds * SECOND)

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.wall_ns += int(seconds * SECOND)

    def reboot(self, off_seconds: float = 0.0) -> None:
        """The machine is off for a while; the wall clock goes on, the uptime begins anew."""
        self.wall_ns += int(off_seconds * SECOND)
        self.uptime_ns = 10 * SECOND
        self.boot += 1

    def clocks(self) -> Clocks:
        return Clocks(
            wall_ns=lambda: self.wall_ns, uptime_ns=lambda: self.uptime_ns, boot_id=lambda: f"boot-{self.boot}"
        )
