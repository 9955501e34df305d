"""How a rig brings its device into a state: off → flashed → booted → provisioned → running → updated."""

import json
import time
from typing import Final

import attr
from labgrid.driver import ExecutionError
from labgrid.factory import target_factory
from labgrid.protocol import CommandProtocol, PowerProtocol
from labgrid.strategy import Strategy
from pexpect import TIMEOUT

from hil.loopback.children import RigError
from hil.rig.cloud import Cloud
from hil.rig.device import GATEWAY, Device
from hil.rig.patience import patient, pause
from hil.rig.protocols import LinkProtocol, PlugProtocol, StorageProtocol
from hil.rig.site import ASK_SECONDS, GATEWAY_ID, Site
from hil.rig.states import STATES, States

_UP_SECONDS: Final = 1200.0
_CLAIM_SECONDS: Final = 900.0
_RUN_SECONDS: Final = 1800.0


@target_factory.reg_driver
@attr.s(eq=False)
class ApplianceStrategy(States, Strategy):
    """Brings an appliance from nothing to an update, and back by snapshots where the board has them."""

    bindings = {  # noqa: RUF012 - labgrid's way to say it
        "power": PowerProtocol,
        "shell": CommandProtocol,
        "plugs": PlugProtocol,
        "storage": StorageProtocol,
        "link": {LinkProtocol, None},  # a rig may have no way to pull the cable
    }
    status: str = attr.ib(default="off")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.times = {}
        self.spoiled = False
        self._site: Site | None = None

    @property
    def site(self) -> Site:
        """What the device belongs to: a cloud of its own. Made when it is asked for first."""
        if self._site is None:
            self._site = Site(self.target)
        return self._site

    @property
    def cloud(self) -> Cloud:
        """The cloud of the site."""
        return self.site.cloud

    @property
    def device(self) -> Device:
        """The device, once it has booted."""
        self.target.activate(self.shell)
        return Device(self.shell)

    def close(self) -> None:
        """Switch off, and end what the site runs on this machine."""
        self._to_off()
        if self._site is not None:
            self._site.close()
            self._site = None

    def force(self, status: str) -> None:
        """Believe that the device is in a state, during development: `--lg-initial-state running`."""
        if status not in STATES:
            raise RigError(f"there is no state {status!r}; there are {', '.join(STATES)}")
        self.target.activate(self.power)
        self.target.activate(self.plugs)
        self.target.activate(self.shell)
        self.status = status

    # ---- the way back ------------------------------------------------------------------------------

    @property
    def _can_keep(self) -> bool:
        return "snapshot" in self.target.env.get_target_features() | self.target.env.get_features()

    def _kept_states(self) -> frozenset[str]:
        return frozenset(self.storage.kept())

    def _keep(self, state: str) -> None:
        if STATES.index(state) > STATES.index("booted"):
            self.cloud.save(state)
        self.storage.save(state)

    def _restore(self, state: str) -> None:
        self.target.activate(self.storage)
        if STATES.index(state) > STATES.index("booted"):
            self.cloud.restore(state)
        self.storage.restore(state)
        self.target.activate(self.shell)
        if STATES.index(state) > STATES.index("booted"):
            self.site.sensor.start(self.plugs.feed)

    # ---- the way forward ---------------------------------------------------------------------------

    def power_on(self) -> None:
        """Give it power, and wait until it takes commands."""
        self.target.activate(self.power)
        self.power.on()
        self.target.activate(self.shell)

    def power_off(self) -> None:
        """Take the power away, now."""
        self.target.deactivate(self.shell)
        self.target.activate(self.power)
        self.power.off()

    def answers_again(self) -> bool:
        """Log in anew where that is needed after a restart; tells whether the device takes commands."""
        try:
            if self.shell.get_status():
                return True
        except (RigError, ExecutionError, TIMEOUT):
            pass
        try:
            self.target.deactivate(self.shell)
            self.target.activate(self.shell)
        except (RigError, ExecutionError, TIMEOUT):
            return False
        return True

    def _to_off(self) -> None:
        self.power_off()

    def _to_flashed(self) -> None:
        self.target.activate(self.storage)
        self.storage.flash()

    def _to_booted(self) -> None:
        self.power_on()
        self.device.eventually("systemctl is-active -q multi-user.target", "the boot is finished", seconds=_UP_SECONDS)

    def _to_provisioned(self) -> None:
        site, device = self.site, self.device
        site.open(device)
        stick = site.stick()
        self.plugs.plug("stick", stick)
        device.eventually("test -s /data/etc-sluice/gateway.yaml", "the claim was taken", seconds=_CLAIM_SECONDS)
        self.plugs.unplug("stick")
        # Now that no claim is looked for in pictures any more, which takes an emulated processor long.
        self.plugs.plug("camera")
        self.plugs.show("dark")
        self.plugs.plug("sensor")
        site.sensor.start(self.plugs.feed)

    def _to_running(self) -> None:
        device = self.device
        device.eventually("systemctl is-active -q gateway.service", "the gateway runs", seconds=_RUN_SECONDS)
        deadline = time.monotonic() + patient(_RUN_SECONDS)
        while True:
            asked = time.monotonic()
            if self._is_known() and self._infers():
                return
            if time.monotonic() > deadline:
                raise RigError(
                    "the device did not come to run:\n"
                    f"{json.dumps(device.pipelines())[:3000]}\n"
                    f"{device.attempt(f'{GATEWAY} identity status')[0]}\n{device.journal('-u', 'gateway.service')}\n"
                    f"{self.cloud.log()}"
                )
            time.sleep(max(ASK_SECONDS, pause(time.monotonic() - asked)))

    def rest(self) -> None:
        """Pull out what the device watches: emulated processors that decode pictures have little left for an update."""
        for role in ("camera", "sensor"):
            self.plugs.unplug(role)

    def _to_updated(self) -> None:
        self.rest()
        self.site.update()

    def _is_known(self) -> bool:
        return any(each.get("gateway") == GATEWAY_ID for each in self.cloud.ask("identity", "devices"))

    def _infers(self) -> bool:
        found = self.device.pipelines()
        wanted = set(self.site.pipelines)
        return wanted <= set(found) and all(found[name].get("inferences", 0) > 0 for name in wanted)
