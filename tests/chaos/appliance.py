"""A whole gateway process of its own, with one busy pipeline, pointed at any broker a test plays."""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from hil.loopback.rig import Rig
from hil.loopback.tally import outbox_counts
from tests.chaos.footprint import Footprint
from tests.chaos.standstill import Standstill
from tests.e2e.conftest import parts
from tests.e2e.releases import write_releases

CALM_GROWTH_BYTES = 96 * 1024 * 1024
"""What a gateway may take more than it did when it was up; models and libraries load in their own time."""


class Appliance:
    """A rig of which the gateway runs, the broker and the bridge when a test starts them."""

    def __init__(
        self, directory: Path, brokers: list[dict[str, Any]], *, module: tuple[str, ...] = ("gateway",), **cloud: Any
    ) -> None:
        """Write its configuration; `brokers` are those of the cloud, `cloud` its other settings."""
        directory.mkdir(parents=True, exist_ok=True)
        models = write_releases(directory / "models")
        sources, pipelines = parts(directory)
        sources["loud"]["speed"] = 2.0
        settings: dict[str, Any] = {
            "models": {"directories": [str(models)]},
            "cloud": {"brokers": brokers, "ack_timeout_seconds": 1.0, "drain_seconds": 30.0, **cloud},
            "local": {"broker": None},
        }
        self.rig = Rig(directory / "rig", {"loud": sources["loud"]}, {"motor": pipelines["motor"]}, gateway=settings)
        at = self.rig.gateway.command.index("gateway")
        self.rig.gateway.command[at : at + 1] = module

    def start(self) -> None:
        """Start the gateway and wait until it answers."""
        self.rig.start_gateway()

    def status(self) -> dict[str, Any]:
        """Return what it says of itself; empty while it does not answer."""
        return self.rig.gateway_status() or {}

    def produced(self) -> int:
        """Return how many records its outbox gave a number."""
        return outbox_counts(self.rig.outbox_file)[1]

    def waiting(self) -> int:
        """Return how many records wait in its outbox."""
        return outbox_counts(self.rig.outbox_file)[2]

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of its metrics, summed over the labels that are not given."""
        text = read_metrics(self.rig.ports.metrics)
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of one event in its log."""
        return [dict(line) for line in log_lines(self.rig.gateway.log) if line.get("event") == event]

    def footprint(self) -> Footprint:
        """Return what the process takes."""
        return Footprint.of(self.rig.gateway.pid)

    @contextmanager
    def answering(self, *pipelines: str) -> Iterator[None]:
        """Check that the models of these pipelines have answered nearly all the time, when the block ends.

        Raises:
            AssertionError: they have not.
        """
        gateway = self.rig.gateway
        with Standstill(self.status, lambda: gateway.pid if gateway.running else None) as watch:
            yield
        watch.check(pipelines)

    def is_quiet(self) -> None:
        """Check that nothing came to light in the log that was not meant to."""
        text = self.rig.gateway.log.read_text()
        assert "Traceback" not in text, text[-4000:]


@contextmanager
def appliances(*made: Appliance) -> Iterator[None]:
    """Leave no process behind."""
    try:
        yield
    finally:
        for each in made:
            each.rig.kill()
            for child in (each.rig.gateway, each.rig.bridge):
                print(f"--- {child.name} of {each.rig.directory}\n{child.tail(8)}")


def read_metrics(port: int) -> str:
    """Fetch the metrics of a gateway or a bridge of this machine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5.0) as answer:
        content: bytes = answer.read()
    return content.decode()


def log_lines(log: Path) -> Iterator[Mapping[str, Any]]:
    """Read a log of JSON lines, past what is none."""
    for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
        if line.startswith("{"):
            yield json.loads(line)
