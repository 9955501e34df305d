"""The registry within the running bridge: its listener, and what keeps its metadata fresh."""

import asyncio
import ssl
from ipaddress import ip_address

import structlog
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config
from cloud_bridge.config import Registry as Settings
from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.component import Identities, ListenerCertificate, open_identities
from cloud_bridge.identity.database import Clock
from cloud_bridge.registry.admission import Admission
from cloud_bridge.registry.app import create_app
from cloud_bridge.registry.keeper import RegistryKeeper
from cloud_bridge.registry.metrics import RegistryMetrics
from cloud_bridge.registry.publishing import Running
from cloud_bridge.registry.registry import Registry
from cloud_bridge.serving import HttpServer
from cloud_bridge.threads import run_in_thread

log = structlog.get_logger()


def open_registry(config: Config, clock: Clock, running: Running = dict) -> tuple[Registry, Identities]:
    """Open the registry with what it rests on; the caller closes `identities.database`.

    Raises:
        ConfigError: there is no section `registry`, or none `identity`.
        IdentityError, StoreError: as `open_identities`.
    """
    settings = config.registry
    if settings is None:
        raise ConfigError("the configuration has no section `registry`; `registry: {}` takes its defaults")
    identities = open_identities(config, clock)
    try:
        return Registry.open(settings, identities, clock=clock, running=running), identities
    except BaseException:
        identities.database.close()
        raise


class RegistryComponent:
    """The listener and the keeper; made anew after a failure."""

    def __init__(self, config: Config, registry: CollectorRegistry, clock: Clock) -> None:
        """Prepare; nothing is opened before `run`.

        Raises:
            ConfigError: the section `registry` cannot be used, or `identity` is missing.
        """
        if config.registry is None:
            raise ConfigError("the configuration has no section `registry`")
        if config.identity is None:
            raise ConfigError("registry needs the section `identity`: content keys and certificates come from there")
        self._config = config
        self._settings: Settings = config.registry
        self._clock = clock
        self._metrics = RegistryMetrics(registry)
        self._stopping = asyncio.Event()
        self._server: HttpServer | None = None

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping.set()
        if self._server is not None:
            self._server.stop()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            BridgeError: keys, database or address cannot be used.
        """
        if self._stopping.is_set():
            return
        registry, identities = await asyncio.to_thread(open_registry, self._config, self._clock)
        try:
            certificate = ListenerCertificate(identities, "registry")
            ask_for_certificates(certificate.context, identities, self._settings.host)
            keeper = RegistryKeeper(registry, self._metrics, self._clock, certificate.renew)
            app = create_app(
                registry,
                self._metrics,
                requests_per_minute=self._settings.requests_per_minute,
                refusal=Admission(identities.database, self._clock).refusal,
            )
            self._server = HttpServer(
                "registry", app, self._settings.host, self._settings.port, tls=certificate.context
            )
            async with asyncio.TaskGroup() as tasks:
                upkeep = tasks.create_task(run_in_thread("registry-keeper", keeper.run, keeper.stop))
                try:
                    await self._server.run()
                finally:
                    keeper.stop()
                    await upkeep
        finally:
            await asyncio.to_thread(identities.database.close)


def ask_for_certificates(context: ssl.SSLContext, identities: Identities, host: str) -> None:
    """Let in over the network only who has a certificate of the hour; on loopback nobody is asked.

    What is served is signed and encrypted, so this keeps strangers from using up the link, no more.
    """
    if is_loopback(host):
        return
    context.load_verify_locations(cadata=identities.issuer.bundle_pem.decode("ascii"))
    context.verify_mode = ssl.CERT_REQUIRED


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address to listen on."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
