"""A mosquitto with TLS on one port and plain MQTT on another: the gateway uses the first, the bridge the second.

So it is the gateway alone that a bad certificate keeps away, and what the bridge has is known all the while.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from hil.loopback.children import free_port
from tests.simulators.authority import Authority
from tests.simulators.mosquitto import Mosquitto


class SecuredBroker:
    """Shows the certificate in `certificate_file`; `renew` makes it read another one, as a renewal hook does."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate_file = directory / "server.pem"
        self.tls_port = free_port()
        authority.issue(self.certificate_file)
        self.mosquitto = Mosquitto(
            directory,
            f"listener {self.tls_port} 127.0.0.1",
            f"cafile {authority.ca_file}",
            f"certfile {self.certificate_file}",
            f"keyfile {self.certificate_file}",
        )

    @property
    def secure_url(self) -> str:
        """Where the gateway connects."""
        return f"mqtts://127.0.0.1:{self.tls_port}"

    @property
    def plain_url(self) -> str:
        """Where the bridge connects."""
        return self.mosquitto.url

    def restart(self) -> None:
        """Show what stands in the file now, to everyone anew."""
        self.mosquitto.kill()
        self.mosquitto.start()

    def __enter__(self) -> Self:
        self.mosquitto.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mosquitto.kill()
