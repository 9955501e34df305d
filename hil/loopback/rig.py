"""The loopback rig: a broker, the cloud bridge and one gateway as real processes on this machine.

`make demo`, the end-to-end tests, the chaos tests and the benchmarks all stand on it.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from gateway.control import ask
from gateway.errors import ControlError
from hil.loopback.children import Child, RigError, free_port, is_listening

GATEWAY_ID = "demo-gateway"

_BROKER = """\
# Loopback only, so that no password is needed.
listener {port} 127.0.0.1
allow_anonymous true
persistence {persistence}
persistence_location {directory}/
autosave_interval 5
max_queued_messages 100000
max_inflight_messages 100
max_packet_size 8388608
log_dest stdout
log_type warning
log_type error
log_type notice
connection_messages false
"""


@dataclass
class Ports:
    """Where the rig listens; taken anew for each rig."""

    broker: int = field(default_factory=free_port)
    console: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)


class Rig:
    """Three processes below one directory, which is emptied first."""

    def __init__(
        self,
        directory: Path,
        sources: Mapping[str, Any],
        pipelines: Mapping[str, Any],
        *,
        gateway: Mapping[str, Any] | None = None,
        bridge: Mapping[str, Any] | None = None,
        persistence: bool = True,
    ) -> None:
        """Write the configuration; `gateway` and `bridge` are merged over the rig's own."""
        self.directory = directory
        self.ports = Ports()
        shutil.rmtree(directory, ignore_errors=True)
        for name in ("broker", "bridge", "gateway", "log"):
            (directory / name).mkdir(parents=True)
        self.gateway_file = directory / "gateway.yaml"
        self.bridge_file = directory / "bridge.yaml"
        self.use_state(directory / "gateway")
        broker_file = directory / "broker.conf"
        broker_file.write_text(
            _BROKER.format(
                port=self.ports.broker,
                directory=directory / "broker",
                persistence="true" if persistence else "false",
            )
        )
        url = f"mqtt://127.0.0.1:{self.ports.broker}"
        self.gateway_settings = _merged(self._gateway_settings(url, sources, pipelines), gateway or {})
        self.bridge_settings = _merged(self._bridge_settings(url), bridge or {})
        self.write()
        logs = directory / "log"
        self.broker = Child("broker", [_mosquitto(), "-c", str(broker_file)], logs / "broker.log")
        self.bridge = Child(
            "cloud-bridge",
            [sys.executable, "-m", "cloud_bridge", "run", "--config", str(self.bridge_file)],
            logs / "bridge.log",
        )
        self.gateway = Child(
            "gateway",
            [sys.executable, "-m", "gateway", "run", "--config", str(self.gateway_file)],
            logs / "gateway.log",
        )

    def _gateway_settings(self, url: str, sources: Mapping[str, Any], pipelines: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "gateway": {"id": GATEWAY_ID, "state_directory": str(self.directory / "gateway")},
            "sources": dict(sources),
            "pipelines": dict(pipelines),
            "cloud": {"brokers": [{"url": url}], "drain_seconds": 20.0},
            "local": {"broker": {"url": url}},
            "metrics": {"port": self.ports.metrics},
            "log": {"format": "json"},
        }

    def _bridge_settings(self, url: str) -> dict[str, Any]:
        return {
            "brokers": [{"url": url}],
            "store": {"url": f"sqlite:///{self.directory / 'bridge' / 'bridge.db'}"},
            "console": {"port": self.ports.console},
            "log": {"format": "json"},
        }

    def use_state(self, directory: Path) -> None:
        """Look for the gateway's state in another directory, which its settings must name, e.g. on a small disk."""
        self.state_directory = directory
        self.outbox_file = directory / "outbox.db"

    def write(self) -> None:
        """Write the configuration files from the settings, after a test has changed them."""
        self.gateway_file.write_text(yaml.safe_dump(self.gateway_settings, sort_keys=False))
        self.bridge_file.write_text(yaml.safe_dump(self.bridge_settings, sort_keys=False))

    @property
    def console_url(self) -> str:
        """The console page of the bridge."""
        return f"http://127.0.0.1:{self.ports.console}/"

    def start(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Bring everything up, in the order that is the kindest to a reader of the logs; any order works."""
        self.start_broker()
        progress(f"broker on 127.0.0.1:{self.ports.broker}")
        self.start_bridge()
        progress(f"cloud bridge with its console on {self.console_url}")
        self.start_gateway()
        progress(f"gateway {GATEWAY_ID}")

    def start_broker(self) -> None:
        """Start the broker and wait until it accepts connections."""
        self.broker.start()
        self.broker.wait_until(lambda: is_listening(self.ports.broker), "the broker listens")

    def start_bridge(self) -> None:
        """Start the bridge and wait until its console answers."""
        self.bridge.start()
        self.bridge.wait_until(lambda: is_listening(self.ports.console), "the console listens")

    def start_gateway(self) -> None:
        """Start the gateway and wait until its control socket answers."""
        self.gateway.start()
        self.gateway.wait_until(lambda: self.gateway_status() is not None, "the gateway answers")

    def gateway_status(self) -> dict[str, Any] | None:
        """Ask the gateway how it is; None if it does not answer."""
        try:
            return ask(self.state_directory / "gateway.sock", "status")
        except ControlError:
            return None

    def last_run(self) -> dict[str, Any]:
        """Read what the gateway wrote about itself when it stopped.

        Raises:
            RigError: it has not stopped cleanly.
        """
        file = self.state_directory / "last-run.json"
        if not file.exists():
            raise RigError(f"the gateway left no {file.name}: it did not stop cleanly\n{self.gateway.tail()}")
        content: dict[str, Any] = json.loads(file.read_text())
        return content

    def stop(self) -> None:
        """Stop everything, the gateway first so that its outbox drains."""
        failures: list[str] = []
        for child, seconds in ((self.gateway, 60.0), (self.bridge, 30.0), (self.broker, 10.0)):
            try:
                child.stop(seconds)
            except RigError as error:
                failures.append(str(error))
        if failures:
            raise RigError("\n".join(failures))

    def kill(self) -> None:
        """Leave nothing behind."""
        for child in (self.gateway, self.bridge, self.broker):
            child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def eventually(condition: Callable[[], bool], what: str, timeout_seconds: float = 30.0) -> None:
    """Wait for a condition.

    Raises:
        RigError: the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RigError(f"{what} did not happen within {timeout_seconds:.0f} s")
        time.sleep(0.05)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = _merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return merged


def _mosquitto() -> str:
    for place in (shutil.which("mosquitto"), "/usr/sbin/mosquitto"):
        if place and Path(place).exists():
            return place
    raise RigError("mosquitto is not installed; `make setup` installs it, or `apt-get install mosquitto`")
