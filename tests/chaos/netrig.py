"""The stand spread over a network: device, broker and bridge each in a namespace of its own."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from hil.loopback.children import is_listening
from hil.loopback.rig import Placement
from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network, Place
from tests.chaos.stand import Options, Stand

_PLACES: dict[str, Place] = {"broker": "broker", "bridge": "bridge", "gateway": "device"}


class Spread(Placement):
    """Where each process of a rig runs in a network. Connections are encrypted when there is a certificate."""

    def __init__(self, network: Network, certificate: Path | None = None) -> None:
        self.network = network
        self.broker_host = network.address("broker")
        self._certificate = certificate

    def broker(self, port: int) -> dict[str, Any]:
        """See Placement."""
        if self._certificate is None:
            return {"url": f"mqtt://{self.broker_host}:{port}", "allow_plaintext": True}
        return {"url": f"mqtts://{self.broker_host}:{port}", "ca_file": str(self._certificate)}

    def prefix(self, process: str) -> list[str]:
        """See Placement."""
        return self.network.prefix(_PLACES[process])

    def is_listening(self, process: str, port: int) -> bool:
        """See Placement."""
        host = self.broker_host if process == "broker" else "127.0.0.1"
        return self.network.within(_PLACES[process], lambda: is_listening(port, host))


class NetRig(Stand):
    """A stand in a network, whose links an experiment may cut, slow down and garble."""

    def __init__(
        self,
        experiment: Experiment,
        network: Network,
        options: Options | None = None,
        *,
        tls: bool = False,
        name: str = "",
    ) -> None:
        options = options or Options()
        certificate = None
        if tls:
            certificate, key = self_signed(experiment.directory, network.address("broker"))
            lines = (f"certfile {certificate}", f"keyfile {key}")
            options = replace(options, broker_lines=(*options.broker_lines, *lines))
        super().__init__(experiment, options, Spread(network, certificate), name)
        self.network = network


def self_signed(directory: Path, address: str) -> tuple[Path, Path]:
    """Make a certificate for an address, good for two days and its own authority; return it and its key."""
    certificate, key = directory / "broker-cert.pem", directory / "broker-key.pem"
    if not certificate.exists():
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"),
                *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=broker"),
                *("-addext", f"subjectAltName=IP:{address}"),
            ],
            check=True,
            capture_output=True,
        )
    return certificate, key
