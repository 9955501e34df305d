"""The rig as tests see it: reach a state, disturb the device by roles, look at what the device and the cloud say."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hil.loopback.children import RigError
from hil.rig.cloud import Cloud
from hil.rig.device import Device
from hil.rig.machine import Machine
from hil.rig.patience import patient
from hil.rig.protocols import Role, Scene
from hil.rig.relay import Quality
from hil.rig.site import ASK_SECONDS, GATEWAY_ID, Site
from hil.rig.strategy import ApplianceStrategy

_REBOOT_SECONDS: Final = 1800.0


class Rig:
    """One device on its rig. What changes the device marks it, so that the next test gets an unchanged one."""

    gateway: Final = GATEWAY_ID

    def __init__(self, strategy: ApplianceStrategy) -> None:
        self.strategy = strategy

    def reach(self, state: str) -> None:
        """Bring the device into a state of the strategy in which no test has changed anything."""
        self.strategy.transition(state)

    def changed(self) -> None:
        """Tell that the device is not any more what its state says."""
        self.strategy.spoiled = True

    @property
    def device(self) -> Device:
        """Commands on the device."""
        return self.strategy.device

    @property
    def cloud(self) -> Cloud:
        """The broker and the bridge that the device belongs to."""
        return self.strategy.cloud

    @property
    def site(self) -> Site:
        """Claims, bundles and what the device watches."""
        return self.strategy.site

    @property
    def machine(self) -> Machine:
        """The virtual machine, for tests that ask for the feature `virtual`."""
        machine: Machine = self.strategy.power.machine
        return machine

    # ---- power -------------------------------------------------------------------------------------

    def cut_power(self) -> None:
        """Take the power away, now."""
        self.changed()
        self.strategy.power_off()

    def power_on(self) -> float:
        """Give it power and wait until the device takes commands; returns the seconds."""
        begin = time.monotonic()
        self.strategy.power_on()
        return time.monotonic() - begin

    def reboot(self, *, seconds: float = _REBOOT_SECONDS) -> float:
        """Have the device restart in good order; returns the seconds until it takes commands again."""
        self.changed()
        begin = time.monotonic()
        before = self.device.boot_id()
        self.device.attempt("systemctl reboot --no-block")
        self.until(lambda: self._booted_since(before), "the device restarts", seconds=seconds)
        return time.monotonic() - begin

    def rebooted_since(self, boot_id: str, *, seconds: float = _REBOOT_SECONDS) -> None:
        """Wait until the device runs another boot than the one named."""
        self.changed()
        self.until(lambda: self._booted_since(boot_id), "the device restarts", seconds=seconds)

    def _booted_since(self, boot_id: str) -> bool:
        with suppress(RigError):
            return self.strategy.answers_again() and self.device.boot_id() != boot_id
        return False

    # ---- what is plugged, what is seen -------------------------------------------------------------

    def plug(self, role: Role, image: Path | None = None) -> None:
        """Plug something in."""
        self.changed()
        self.strategy.plugs.plug(role, image)

    def unplug(self, role: Role) -> None:
        """Pull it out."""
        self.changed()
        self.strategy.plugs.unplug(role)

    def rest(self) -> None:
        """Pull out all that the device watches: it is about to be updated, and shall have its processors for that."""
        self.changed()
        self.strategy.rest()

    def show(self, scene: Scene) -> None:
        """Change what the camera sees."""
        self.changed()
        self.strategy.plugs.show(scene)

    def shift_sensor(self, by: float) -> None:
        """Let the sensor tell values that are so much higher."""
        self.changed()
        self.site.sensor.shift = by

    # ---- network and disk --------------------------------------------------------------------------

    def cut_cloud(self) -> None:
        """Take the way to the cloud away; the device's own network stays."""
        self.cloud.cut()

    def mend_cloud(self) -> None:
        """Give it back."""
        self.cloud.mend()

    def slow_cloud(self, bytes_per_second: float, delay_seconds: float = 0.0) -> None:
        """Make the way to the cloud slow."""
        self.cloud.shape(Quality(bytes_per_second, delay_seconds))

    def pull_cable(self) -> None:
        """Pull the network cable."""
        self.strategy.link.pull()

    def put_cable_back(self) -> None:
        """Put it back."""
        self.strategy.link.put_back()

    def corrupt(self, partition: str, **where: Any) -> int:
        """Flip one bit of a partition while the device is off; returns the offset on the disk."""
        self.changed()
        offset: int = self.strategy.storage.corrupt(partition, **where)
        return offset

    def read_disk(self, target: Path) -> Path:
        """Read the whole disk while the device is off."""
        content: Path = self.strategy.storage.raw(target)
        return content

    # ---- waiting -----------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str, *, seconds: float, every: float = 1.0) -> float:
        """Wait for something, looking every so many seconds; returns the seconds.

        Raises:
            RigError: it does not happen in time.
        """
        begin, seconds = time.monotonic(), patient(seconds)
        while not condition():
            if time.monotonic() > begin + seconds:
                raise RigError(f"{what}: did not happen within {seconds:.0f} s")
            time.sleep(every)
        return time.monotonic() - begin

    def event(self, pipeline: str, label: str, *, seconds: float) -> dict[str, Any]:
        """Wait until the bridge has committed an event; returns it."""
        found: list[dict[str, Any]] = []

        def committed() -> bool:
            found[:] = [each for each in self.cloud.events(GATEWAY_ID, pipeline) if each.get("label") == label]
            return bool(found)

        self.until(committed, f"an event `{label}` of {pipeline} in the bridge", seconds=seconds, every=ASK_SECONDS)
        return found[0]
