"""The cloud of the rig: a broker and a bridge on this machine, as an operator sets them up, for a device elsewhere.

Between the device and each listener stands a relay, so that the link can be slow or cut without the device's help.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from hil.loopback.children import Child, RigError, is_listening
from hil.rig.notes import Notes
from hil.rig.patience import patient
from hil.rig.relay import Quality, Relay

TRUST_DOMAIN: Final = "rig.sluice.test"
_COMMAND_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class CloudPorts:
    """Where the cloud listens on loopback."""

    devices: int
    services: int
    identity: int
    registry: int
    console: int


class Cloud:
    """Broker and bridge below one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        reached_as: str,
        ek_roots: Path | None,
        pcrs: tuple[int, ...],
        notes: Notes | None = None,
        listen: str = "127.0.0.1",
    ) -> None:
        """Prepare; nothing is started.

        Args:
            directory: of everything.
            reached_as: address under which the device finds this machine, e.g. 10.0.2.2 from a virtual board.
            ek_roots: certificates of the TPM's maker; None where a claim vouches alone.
            pcrs: registers that an attestation covers.
            notes: which ports it has; None: any that are free.
            listen: address at which the device is let in; a board on a bench needs another than loopback.

        Raises:
            RigError: mosquitto is not installed.
        """
        self.directory = directory
        self.reached_as = reached_as
        notes = notes or Notes(None, directory)
        self.ports = CloudPorts(
            **{name: notes.port(name) for name in ("devices", "services", "identity", "registry", "console")}
        )
        self.file = directory / "bridge.yaml"
        self.broker_directory = directory / "broker"
        self._ek_roots, self._pcrs = ek_roots, pcrs
        for name in ("broker", "bridge", "log", "keys"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self.links = {
            name: Relay(target, listen, port=notes.port(f"{name} from outside"))
            for name, target in (
                ("broker", self.ports.devices),
                ("identity", self.ports.identity),
                ("registry", self.ports.registry),
            )
        }
        self.file.write_text(yaml.safe_dump(self.settings(), sort_keys=False))
        logs = directory / "log"
        self.broker = Child(
            "broker",
            [_mosquitto(), "-c", str(self.broker_directory / "mosquitto.conf")],
            logs / "broker.log",
            {"OPENSSL_CONF": str(self.broker_directory / "openssl.cnf")},
        )
        self.bridge = Child(
            "cloud-bridge",
            [sys.executable, "-m", "cloud_bridge", "run", "--config", str(self.file)],
            logs / "bridge.log",
        )

    def settings(self) -> dict[str, Any]:
        """Return the bridge's configuration."""
        here = self.directory
        return {
            "brokers": [
                {
                    "url": f"mqtts://127.0.0.1:{self.ports.services}",
                    "ca_file": str(self.broker_directory / "services-ca.pem"),
                    "certificate_file": str(self.broker_directory / "bridge.pem"),
                    "key_file": str(self.broker_directory / "bridge-key.pem"),
                }
            ],
            "store": {"url": f"sqlite:///{here / 'bridge' / 'bridge.db'}"},
            "console": {"port": self.ports.console},
            "log": {"format": "json"},
            "identity": {
                "trust_domain": TRUST_DOMAIN,
                "directory": str(here / "bridge" / "identity"),
                "port": self.ports.identity,
                "names": [self.reached_as],
                "pcrs": list(self._pcrs),
                "ek_roots": None if self._ek_roots is None else str(self._ek_roots),
                "broker_directory": str(self.broker_directory),
                "broker_pid_file": str(self.broker_directory / "pid"),
                # A slow processor answers a challenge late.
                "challenge_seconds": 300,
            },
            "registry": {
                "url": str(here / "bridge" / "registry"),
                "keys": str(here / "keys" / "registry"),
                "port": self.ports.registry,
            },
            "rollout": {"every_seconds": 1.0, "soak_minutes": 0.05},
        }

    @property
    def addresses(self) -> dict[str, str]:
        """Where a device finds broker, identity and registry."""
        at = self.reached_as
        return {
            "broker": f"mqtts://{at}:{self.links['broker'].port}",
            "identity": f"https://{at}:{self.links['identity'].port}",
            "registry": f"https://{at}:{self.links['registry'].port}",
        }

    def prepare(self) -> None:
        """Do once what an operator does before the first start: authorities, the broker's files, the registry.

        Raises:
            RigError: a command fails.
        """
        broker = self.broker_directory
        self.run(
            *("broker-config", "--out", str(broker), "--state-directory", str(broker), "--name", self.reached_as),
            *("--device-address", "127.0.0.1", "--device-port", str(self.ports.devices)),
            *("--service-port", str(self.ports.services)),
        )
        conf = broker / "mosquitto.conf"
        # A mosquitto that root starts becomes another user, who may not read these files.
        owner = "user root\n" if os.geteuid() == 0 else ""
        own = f"{owner}pid_file {broker / 'pid'}\nlog_dest stdout\nconnection_messages false\n"
        conf.write_text(own + conf.read_text())
        self.run("registry", "init", "--root-directory", str(self.directory / "keys" / "root"))

    def start(self) -> None:
        """Start what does not run.

        Raises:
            RigError: one of them does not come up.
        """
        ports = self.ports
        for child, wanted in (
            (self.broker, (ports.devices, ports.services)),
            (self.bridge, (ports.console, ports.identity, ports.registry)),
        ):
            if not child.running:
                child.start()
            for port in wanted:
                child.wait_until(partial(is_listening, port), f"{child.name} listens", patient(90.0))

    def stop(self) -> None:
        """Stop both; everything they know is on the disk then."""
        for child in (self.bridge, self.broker):
            child.stop(patient(60.0))

    def save(self, name: str) -> None:
        """Keep what the cloud knows under a name. It is stopped for that, and started again if it ran."""
        ran = self.bridge.running
        self.stop()
        kept = self.directory / "kept" / name
        shutil.rmtree(kept, ignore_errors=True)
        for folder in ("bridge", "broker"):
            shutil.copytree(self.directory / folder, kept / folder, symlinks=True)
        if ran:
            self.start()

    def restore(self, name: str) -> None:
        """Go back to what was kept: a device that went back in time would not fit a cloud that did not."""
        self.stop()
        for folder in ("bridge", "broker"):
            shutil.rmtree(self.directory / folder)
            shutil.copytree(self.directory / "kept" / name / folder, self.directory / folder, symlinks=True)
        self.start()

    def close(self) -> None:
        """Leave nothing behind but the files."""
        for child in (self.bridge, self.broker):
            child.kill()
        for link in self.links.values():
            link.close()

    # ---- the operator ------------------------------------------------------------------------------

    def run(self, *words: str) -> str:
        """Run a command of `cloud-bridge`; returns what it printed.

        Raises:
            RigError: it failed; its own words are told.
        """
        command = [sys.executable, "-m", "cloud_bridge", *words, "--config", str(self.file)]
        seconds = patient(_COMMAND_SECONDS)
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise RigError(f"`{' '.join(words)}` took longer than {seconds:.0f} s") from error
        if done.returncode:
            raise RigError(f"`cloud-bridge {' '.join(words)}` failed:\n{done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def ask(self, *words: str) -> list[dict[str, Any]]:
        """Run a command with --json; returns its lines."""
        return [json.loads(line) for line in self.run(*words, "--json").splitlines() if line.strip()]

    def events(self, gateway: str, pipeline: str) -> list[dict[str, Any]]:
        """Return the events of a pipeline that the store holds: what it shows has been committed."""
        return self.ask("events", "--gateway", gateway, "--pipeline", pipeline, "--limit", "100")

    def approve(self, name: str, pcrs: dict[int, str]) -> None:
        """Let devices in that have booted what these registers say (lower-case hexadecimal, SHA-256)."""
        values = self.directory / "keys" / f"{name}.json"
        values.write_text(json.dumps({"pcrs": {str(number): value for number, value in pcrs.items()}}))
        self.run("identity", "states", "add", name, str(values))

    # ---- the link ----------------------------------------------------------------------------------

    def shape(self, quality: Quality) -> None:
        """Make all ways to the cloud as good or bad as said."""
        for link in self.links.values():
            link.quality = Quality(quality.bytes_per_second, quality.delay_seconds, silent=quality.silent)

    def cut(self) -> None:
        """Take all ways away."""
        for link in self.links.values():
            link.cut()

    def mend(self) -> None:
        """Give them back."""
        for link in self.links.values():
            link.mend()

    def log(self, lines: int = 30) -> str:
        """Return the last lines of both logs, for a failure report."""
        return f"--- bridge\n{self.bridge.tail(lines)}\n--- broker\n{self.broker.tail(lines)}"


def _mosquitto() -> str:
    for place in (shutil.which("mosquitto"), "/usr/sbin/mosquitto"):
        if place and Path(place).exists():
            return place
    raise RigError("mosquitto is not installed; `make setup` installs it, or `apt-get install mosquitto`")
