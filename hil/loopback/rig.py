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
from hil.loopback.security import SecuredSite, Security

GATEWAY_ID = "demo-gateway"

_BROKER = """\
# Loopback only, so that no password is needed.
listener {port} {host}
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


class Placement:
    """Where the processes run: all on the loopback of this machine. A subclass may spread them over a network."""

    broker_host = "127.0.0.1"
    """The address of the broker, where it listens and as the others know it."""

    def broker(self, port: int) -> dict[str, Any]:
        """Return the broker as the configurations of gateway and bridge name it."""
        return {"url": f"mqtt://{self.broker_host}:{port}"}

    def prefix(self, process: str) -> list[str]:
        """Return what stands before the command of `broker`, `bridge` or `gateway`, e.g. `nsenter --net=…`."""
        del process
        return []

    def is_listening(self, process: str, port: int) -> bool:
        """Tell whether a process accepts connections."""
        del process
        return is_listening(port)


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
        placement: Placement | None = None,
        security: Security = "none",
    ) -> None:
        """Write the configuration; `gateway` and `bridge` are merged over the rig's own.

        Args:
            directory: of everything; emptied.
            sources: of the gateway.
            pipelines: of the gateway.
            gateway: more of the gateway's configuration.
            bridge: more of the bridge's.
            persistence: whether the broker writes down what it queues.
            placement: where the processes run.
            security: `none` is one broker without TLS for everything, and a vault of level `software`. `software` and
                `tpm` are devices that enrol, certificates, a broker for the cloud that lets nobody else in, and one of
                the site, on loopback; at level `tpm` keys are in a swtpm of the rig.

        Raises:
            RigError: a program is not installed.
        """
        self.directory = directory
        self.ports = Ports()
        self.placement = placement or Placement()
        shutil.rmtree(directory, ignore_errors=True)
        for name in ("broker", "bridge", "gateway", "log"):
            (directory / name).mkdir(parents=True)
        self.gateway_file = directory / "gateway.yaml"
        self.bridge_file = directory / "bridge.yaml"
        self.use_state(directory / "gateway")
        self.site = (
            None if security == "none" else SecuredSite(directory, GATEWAY_ID, security, persistence=persistence)
        )
        plain = "broker" if self.site is None else "local"
        (directory / plain).mkdir(exist_ok=True)
        plain_file = directory / f"{plain}.conf"
        plain_file.write_text(
            _BROKER.format(
                port=self.ports.broker if self.site is None else self.site.ports.local,
                host=self.placement.broker_host,
                directory=directory / plain,
                persistence="true" if persistence else "false",
            )
        )
        self.gateway_settings = _merged(self._gateway_settings(sources, pipelines), gateway or {})
        self.bridge_settings = _merged(self._bridge_settings(), bridge or {})
        self.write()
        logs = directory / "log"
        at = self.placement.prefix
        site_broker = Child(plain, [*at("broker"), _mosquitto(), "-c", str(plain_file)], logs / f"{plain}.log")
        self.broker = site_broker if self.site is None else self._secured_broker(self.site)
        self.local_broker = None if self.site is None else site_broker
        self.bridge = Child(
            "cloud-bridge",
            [*at("bridge"), sys.executable, "-m", "cloud_bridge", "run", "--config", str(self.bridge_file)],
            logs / "bridge.log",
        )
        self.gateway = Child(
            "gateway",
            [*at("gateway"), sys.executable, "-m", "gateway", "run", "--config", str(self.gateway_file)],
            logs / "gateway.log",
        )

    def _secured_broker(self, site: SecuredSite) -> Child:
        command = [*self.placement.prefix("broker"), _mosquitto(), "-c", str(site.broker / "mosquitto.conf")]
        return Child("broker", command, self.directory / "log" / "broker.log", site.broker_environment)

    def _gateway_settings(self, sources: Mapping[str, Any], pipelines: Mapping[str, Any]) -> dict[str, Any]:
        broker = self.placement.broker(self.ports.broker)
        settings = {
            "gateway": {"id": GATEWAY_ID, "state_directory": str(self.directory / "gateway")},
            "sources": dict(sources),
            "pipelines": dict(pipelines),
            "vault": {"level": "software"},
            "cloud": {"brokers": [broker], "drain_seconds": 20.0},
            "local": {"broker": broker},
            "metrics": {"port": self.ports.metrics},
            "log": {"format": "json"},
        }
        return settings if self.site is None else _merged(settings, self.site.gateway_settings(self.ports.broker))

    def _bridge_settings(self) -> dict[str, Any]:
        settings = {
            "brokers": [self.placement.broker(self.ports.broker)],
            "store": {"url": f"sqlite:///{self.directory / 'bridge' / 'bridge.db'}"},
            "console": {"port": self.ports.console},
            "log": {"format": "json"},
        }
        return settings if self.site is None else _merged(settings, self.site.bridge_settings())

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

    @property
    def children(self) -> list[Child]:
        """All processes, in the order in which they are stopped: the gateway first, so that its outbox drains."""
        found = [self.gateway, self.bridge, self.broker]
        found += [self.local_broker] if self.local_broker is not None else []
        found += [self.site.tpm.child] if self.site is not None and self.site.tpm is not None else []
        return found

    @property
    def site_port(self) -> int:
        """The port of the broker for people and programs on the site: no TLS, on loopback."""
        return self.ports.broker if self.site is None else self.site.ports.local

    def start(
        self, progress: Callable[[str], None] = lambda _: None, *, before: Callable[[Self], None] = lambda _: None
    ) -> None:
        """Bring everything up, in the order that is the kindest to a reader of the logs; any order works.

        `before` is called when the site is prepared and nothing runs yet.
        """
        self.prepare(progress)
        before(self)
        self.start_broker()
        progress(f"broker on 127.0.0.1:{self.ports.broker}{'' if self.site is None else ', for certificates only'}")
        if self.site is not None:
            progress(f"broker of the site on 127.0.0.1:{self.site_port}")
        self.start_bridge()
        progress(f"cloud bridge with its console on {self.console_url}")
        self.start_gateway()
        progress(f"gateway {GATEWAY_ID}")

    def prepare(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Do what a secured site needs before its first start; nothing for a rig without security."""
        if self.site is not None:
            self.site.prepare(self.ports.broker, progress)

    def start_broker(self) -> None:
        """Start the broker, and that of the site if there are two, and wait until they accept connections."""
        self._start_broker(self.broker, self.ports.broker)
        if self.local_broker is not None and not self.local_broker.running:
            self._start_broker(self.local_broker, self.site_port)

    def _start_broker(self, child: Child, port: int) -> None:
        child.start()
        child.wait_until(lambda: self.placement.is_listening("broker", port), "the broker listens")

    def start_bridge(self) -> None:
        """Start the bridge and wait until its console answers."""
        self.bridge.start()
        self.bridge.wait_until(lambda: self.placement.is_listening("bridge", self.ports.console), "the console listens")

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

    def gateway_identity(self) -> dict[str, Any] | None:
        """Ask the gateway how its identity is, as `gateway identity status` does; None if it does not answer."""
        try:
            return ask(self.state_directory / "gateway.sock", "identity")
        except ControlError:
            return None

    def gateway_updates(self) -> dict[str, Any] | None:
        """Ask the gateway for its updates, as `gateway ota status` does; None if it does not answer."""
        try:
            return ask(self.state_directory / "gateway.sock", "ota")
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
        patience = {self.gateway.name: 60.0, self.bridge.name: 30.0}
        for child in self.children:
            try:
                child.stop(patience.get(child.name, 10.0))
            except RigError as error:
                failures.append(str(error))
        if failures:
            raise RigError("\n".join(failures))

    def kill(self) -> None:
        """Leave nothing behind."""
        for child in self.children:
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
