"""The stand with a whole gateway: sensors replayed through tiny models, decisions, outbox, uplink, local broker."""

import urllib.request
from contextlib import ExitStack
from typing import Any

from hil.loopback.children import Child
from hil.loopback.rig import Placement, Rig
from hil.loopback.tally import tally_of
from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network
from tests.chaos.netrig import Spread
from tests.chaos.oracle import Oracle, Verdict
from tests.chaos.stand import Options, Stand
from tests.chaos.standstill import Standstill
from tests.e2e.conftest import parts
from tests.e2e.releases import write_releases


class SiteStand(Stand):
    """Broker, bridge and a gateway whose events the oracle hears on the local broker."""

    def __init__(
        self,
        experiment: Experiment,
        options: Options | None = None,
        *,
        network: Network | None = None,
        gateway: dict[str, Any] | None = None,
        placement: Placement | None = None,
        name: str = "",
    ) -> None:
        """Write the configuration; `placement` of the processes where they are not spread over a network."""
        self._gateway_overrides = gateway or {}
        self.network = network
        self.opened = ExitStack()
        super().__init__(experiment, options, Spread(network) if network is not None else placement, name)
        self.watch = Standstill(self.status, lambda: self.rig.gateway.pid if self.rig.gateway.running else None)

    def _make_rig(self) -> Rig:
        sources, pipelines = parts(self.directory)
        models = write_releases(self.directory / "models")
        return Rig(
            self.directory / "rig",
            sources,
            pipelines,
            gateway={"models": {"directories": [str(models)]}, **self._gateway_overrides},
            persistence=self.options.persistence,
            placement=self.placement,
        )

    def _configure(self) -> None:
        cloud, local = self.rig.gateway_settings["cloud"], self.rig.gateway_settings["local"]
        cloud["brokers"][0].update(self._identity)
        cloud["ack_timeout_seconds"] = self.options.ack_timeout_seconds
        local["broker"].update(self._identity)
        super()._configure()

    def _make_oracle(self) -> Oracle:
        # It listens where the broker is, so that a cut of the device's link does not make it deaf.
        url = f"mqtt://{self.placement.broker_host}:{self.rig.ports.broker}"
        return Oracle(self.directory / "oracle", broker=url, prefix=self.placement.prefix("broker"))

    def start(self) -> None:
        """Bring everything up, and wait until the first record has gone the whole way."""
        self.oracle.start()
        self.start_broker()
        self.rig.start_bridge()
        self.rig.start_gateway()
        self.until(lambda: self.committed() > 0, "the first record is committed")
        self.opened.enter_context(self.watch)

    def kill(self) -> None:
        """Leave nothing behind."""
        self.opened.close()
        super().kill()

    def processes(self) -> dict[str, Child]:
        """Return what runs, by name."""
        gateway = {"gateway": self.rig.gateway} if self.rig.gateway.running else {}
        return {**super().processes(), **gateway}

    def status(self) -> dict[str, Any] | None:
        """Ask the gateway how it is; None if it does not answer."""
        return self.rig.gateway_status()

    def told(self) -> dict[str, Any]:
        """Ask the gateway how it is, and insist on an answer."""
        status = self.status()
        assert status is not None, self.rig.gateway.tail()
        return status

    def inferences(self) -> int:
        """Return how many answers the models have given since the gateway started."""
        return sum(int(pipeline["inferences"]) for pipeline in self.told()["pipelines"])

    def pid(self) -> int:
        """Return the process id of the gateway."""
        return self.rig.gateway.pid

    def metrics(self) -> dict[str, float]:
        """Read the metrics of the gateway, by name and labels as they stand there."""
        url = f"http://127.0.0.1:{self.rig.ports.metrics}/metrics"

        def read() -> str:
            with urllib.request.urlopen(url, timeout=5.0) as response:
                text: str = response.read().decode()
            return text

        text = self.network.within("device", read) if self.network is not None else read()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def settle(self, *, least: int = 20, timeout_seconds: float = 60.0) -> Verdict:
        """Stop the gateway, which drains it, then compare with the truth and check all that must hold."""
        del timeout_seconds  # the gateway's own drain time
        self.check_footprints()
        return self.judged(least, evictions=False)

    def judged(self, least: int, *, evictions: bool) -> Verdict:
        """Stop the gateway, which drains it, and compare with the truth; `evictions` says whether there may be some."""
        assert self.rig.gateway.stop(60.0) == 0
        assert self.rig.last_run()["drained"], "the gateway stopped before its outbox was empty"
        self.until(lambda: tally_of(self.rig).lost == 0, "everything arrived")
        self.oracle.wait_until_quiet()
        verdict = self.oracle.judge(self.database)
        counts = tally_of(self.rig)
        self.experiment.log("settled", verdict=verdict, tally=counts)
        verdict.check(evictions=evictions, least=least)
        # The outbox's own account: it has given out so many numbers, and each of them is there, or named as given up.
        assert counts.committed + counts.evicted == counts.enqueued > 0
        assert counts.duplicates == counts.waiting == 0
        self.check_logs()
        return verdict

    def check_answers(self) -> dict[str, float]:
        """Check that each model has answered nearly all the time; return the shares.

        Raises:
            AssertionError: one has not.
        """
        self.experiment.log("answered", **self.watch.shares)
        return self.watch.check(self.rig.gateway_settings["pipelines"])
