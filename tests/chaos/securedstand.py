"""The stand of a whole site: gateway with TPM and updates over the air; its disk, clock and links are in our hands."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from hil.loopback.rig import Placement, Rig
from hil.loopback.security import SecuredSite
from hil.loopback.tpm import SoftwareTpm
from hil.loopback.updates import MODEL, PIPELINE, Updates
from tests.chaos.clocks import WallClock
from tests.chaos.experiment import Experiment
from tests.chaos.oracle import Oracle, Verdict
from tests.chaos.sitestand import SiteStand
from tests.chaos.storage.fusedisk import FuseDisk
from tests.chaos.tcpproxy import Link
from tests.e2e.conftest import parts
from tests.e2e.releases import write_releases

FIRST_VERSION: Final = "1.0.0"
_MIB: Final = 1 << 20
_QUOTA: Final = {"max_bytes": 8 * _MIB}


class _Placed(Placement):
    """The gateway goes by a clock of its own."""

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock

    def prefix(self, process: str) -> list[str]:
        return self._clock.command if process == "gateway" else []


class SecuredStand(SiteStand):
    """Two brokers, the bridge, swtpm and one gateway, which is updated; the oracle hears the broker of the site."""

    rig: Rig

    def __init__(
        self, experiment: Experiment, disk: FuseDisk, *, gateway_module: tuple[str, ...] = ("gateway",)
    ) -> None:
        """Write the configuration. disk: for the state of the gateway, and nothing else of the site."""
        self.disk = disk
        self.clock = WallClock(experiment.directory / "clock")
        self.updates = Updates(experiment.directory / "updates", trial_seconds=2.0)
        self.published: list[str] = []
        self._gateway_module = gateway_module
        super().__init__(experiment, placement=_Placed(self.clock))
        self.link = Link([self.rig.ports.broker, self.site.ports.identity, self.updates.port])

    # ---- made ------------------------------------------------------------------------------------

    def _make_rig(self) -> Rig:
        sources, pipelines = parts(self.directory)
        file = self.directory / "boiler.csv"
        noise = np.random.default_rng(5).normal(20.0, 0.3, 20_000)
        file.write_text("value\n" + "\n".join(f"{value:.4f}" for value in noise) + "\n")
        sources["boiler"] = {"type": "replay", "file": str(file), "rate_hz": 1.0, "speed": 200.0, "loop": True}
        rules = [{"name": "anomaly", "min_score": 0.5}]
        interest = {"measure_every_seconds": 1.0}
        del pipelines["machine"], sources["machine"]  # two are enough
        pipelines[PIPELINE] = {"source": "boiler", "model": MODEL, "rules": rules, "interest": interest}
        state = self.disk.mountpoint / "state"
        outbox = {"ballast_bytes": 2 * _MIB, "classes": dict.fromkeys(("event", "measure", "bulk"), _QUOTA)}
        rig = Rig(
            self.directory / "rig",
            sources,
            pipelines,
            gateway={
                **self.updates.gateway_settings(),
                "gateway": {"state_directory": str(state)},
                "models": {"directories": [str(write_releases(self.directory / "models"))]},
                "outbox": outbox,
            },
            bridge=self.updates.bridge_settings(),
            persistence=self.options.persistence,
            placement=self.placement,
            security="tpm",
        )
        rig.use_state(state)
        at = rig.gateway.command.index("gateway")
        rig.gateway.command[at : at + 1] = self._gateway_module
        return rig

    def _configure(self) -> None:
        cloud = self.rig.gateway_settings["cloud"]
        cloud["ack_timeout_seconds"] = self.options.ack_timeout_seconds
        cloud["brokers"][0]["keepalive_seconds"] = self.options.keepalive_seconds
        self.rig.write()

    def _make_oracle(self) -> Oracle:
        return Oracle(self.directory / "oracle", broker=f"mqtt://127.0.0.1:{self.site.ports.local}")

    @property
    def site(self) -> SecuredSite:
        """What makes the rig secure."""
        assert self.rig.site is not None
        return self.rig.site

    @property
    def tpm(self) -> SoftwareTpm:
        """The TPM of the gateway."""
        assert self.site.tpm is not None
        return self.site.tpm

    # ---- up and down -----------------------------------------------------------------------------

    def start(self) -> None:
        """Prepare the site, bring everything up, and wait until records arrive and both pipelines answer."""
        self.opened.enter_context(self.link)
        self._lead_through_link()
        self.oracle.start()
        self.rig.start(before=self.updates.prepare)
        self.secret = self.site.claim.read_text().strip() if self.site.claim.exists() else self.secret
        self.until(lambda: self.committed() > 0, "the first record is committed", 60.0)
        self.until(self._answers, "all pipelines answer", 60.0)
        self.opened.enter_context(self.watch)

    def _lead_through_link(self) -> None:
        settings, link = self.rig.gateway_settings, self.link
        settings["cloud"]["brokers"][0]["url"] = f"mqtts://127.0.0.1:{link.port_to(self.rig.ports.broker)}"
        settings["identity"]["url"] = f"https://127.0.0.1:{link.port_to(self.site.ports.identity)}"
        settings["ota"]["url"] = f"https://127.0.0.1:{link.port_to(self.updates.port)}"
        self.rig.write()

    def _answers(self) -> bool:
        found = (self.status() or {}).get("pipelines", ())
        return {each["pipeline"] for each in found if each["inferences"]} >= set(self.rig.gateway_settings["pipelines"])

    def kill(self) -> None:
        """Leave nothing behind."""
        super().kill()
        self.tpm.kill()

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Expect no answers of the models: the gateway was stopped on purpose."""
        with self.watch.excused():
            yield

    # ---- updates ---------------------------------------------------------------------------------

    def publish(self) -> str:
        """Publish one more release and roll it out; return its version.

        Raises:
            RigError: a command of the bridge fails.
        """
        if self.published:
            self._abort_rollouts()
        version = f"1.{len(self.published) + 3}.0"
        self.published.append(version)
        self.updates.publish(self.rig, version)
        return version

    def _abort_rollouts(self) -> None:
        """What was cut short would stand in the way of the next one, as an operator would see."""
        for one in self.updates.rollouts(self.rig):
            if one["phase"] not in ("done", "aborted"):
                self.site.in_cloud("rollout", "abort", str(one["id"]))

    def update_phase(self, version: str) -> str:
        """Return how far the gateway says that it is with a version; "" while it says nothing of it."""
        told = ((self.rig.gateway_updates() or {}).get("pipelines", {}).get(PIPELINE) or {}).get("told") or {}
        return str(told["phase"]) if (told.get("model") or {}).get("version") == version else ""

    def serving(self) -> str:
        """Return the version of the updated model that the gateway says it runs."""
        return str(((self.rig.gateway_updates() or {}).get("serving", {}).get(PIPELINE) or {}).get("version", ""))

    # ---- what must hold --------------------------------------------------------------------------

    def recovers(self, timeout_seconds: float = 60.0) -> float:
        """Wait until new records arrive, all models answer, and one whole release runs; return the seconds."""
        seconds = self.flows(1, timeout_seconds)
        before = {each["pipeline"]: each["inferences"] for each in self.told()["pipelines"]}

        def goes_on() -> bool:
            now = {each["pipeline"]: each["inferences"] for each in (self.status() or {}).get("pipelines", ())}
            return all(now.get(name, 0) > count for name, count in before.items())

        seconds += self.until(goes_on, "all models answer", timeout_seconds)
        seconds += self.until(
            lambda: self.serving() in {FIRST_VERSION, *self.published}, "the old or a new release runs", timeout_seconds
        )
        return seconds

    def settle(self, *, least: int = 20, timeout_seconds: float = 60.0) -> Verdict:
        """Stop the gateway, which drains it, then compare with the truth and check all that must hold."""
        del timeout_seconds  # the gateway's own drain time
        with self.excused():
            return self.judged(least, evictions=True)
