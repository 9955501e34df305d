"""Puts the identity service together, for the running bridge and for the command line."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config, Identity
from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.app import create_app
from cloud_bridge.identity.broker import BrokerFiles, host_names
from cloud_bridge.identity.contentkeys import ContentKeys
from cloud_bridge.identity.database import Clock, Database, open_database
from cloud_bridge.identity.endorsement import TrustedRoots
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.files import PRIVATE, PUBLIC, write_file
from cloud_bridge.identity.issuer import Issuer, LocalCa, key_pem, life_from, new_key, utc
from cloud_bridge.identity.issuers import open_issuer
from cloud_bridge.identity.keeper import Keeper
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.service import Anchors, IdentityService
from cloud_bridge.identity.takeover import SessionCutter
from cloud_bridge.serving import HttpServer
from cloud_bridge.threads import run_in_thread

log = structlog.get_logger()

_KEY_FILE: Final = "content-keys.key"
_DAY_SECONDS: Final = 86_400.0
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Identities:
    """What the identity service rests on. `ca` signs servers and the bridge, `issuer` devices; often they are one."""

    settings: Identity
    database: Database
    ca: LocalCa
    issuer: Issuer
    keys: ContentKeys
    clock: Clock

    @property
    def anchors(self) -> Anchors:
        """Whom devices must trust."""
        return Anchors(self.ca.services_pem.decode("ascii"), self.ca.services_fingerprint)

    def broker_files(self, directory: Path) -> BrokerFiles:
        """Return the files of a broker."""
        return BrokerFiles(directory, self.ca, self.issuer, server_seconds=self.settings.server_days * _DAY_SECONDS)


def open_identities(config: Config, clock: Clock) -> Identities:
    """Load keys and authorities, or make them at the first start.

    Raises:
        ConfigError: there is no section `identity`, or its `issuer` is not to be had.
        IdentityError: a file cannot be used.
        StoreError: the database cannot be used now, so that it cannot be checked that the files belong to it.
    """
    settings = config.identity
    if settings is None:
        raise ConfigError(
            "the configuration has no section `identity`; at least `identity: {trust_domain: NAME}` is needed"
        )
    ca = LocalCa.open(settings.home(), settings.trust_domain, utc(clock()))
    issuer = open_issuer(settings, ca, clock)
    database = open_database(config.store, settings.home())
    try:
        lease = settings.lease_days * _DAY_SECONDS
        keys = ContentKeys(database, settings.home() / _KEY_FILE, lease_seconds=lease, clock=clock)
        facts = {"services-ca": ca.services_fingerprint}
        if issuer is ca:  # a foreign authority's certificates change without the bridge
            facts["devices-ca"] = ca.bundle_pem.decode("ascii")
        _agree(database, facts)
    except BaseException:
        database.close()
        raise
    return Identities(settings, database, ca, issuer, keys, clock)


def _agree(database: Database, facts: dict[str, str]) -> None:
    """Check that all bridges on one database have the same authorities: devices could tell them apart."""
    with database.transaction() as tx:
        for name, value in facts.items():
            tx.change(
                "INSERT INTO identity_facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, value)
            )
            ((kept,),) = tx.rows("SELECT value FROM identity_facts WHERE name = ?", (name,))
            if kept != value:
                raise IdentityError(
                    f"the authority {name!r} of this directory is not the one that the database knows; copy the files"
                    " of `identity.directory` from the bridge that made it"
                )


class ListenerCertificate:
    """The certificate of a listener: kept in two files, renewed half-way, taken up without a restart."""

    def __init__(self, identities: Identities, name: str = "listener") -> None:
        """Load or make it. name: of the files, one for each listener.

        Raises:
            IdentityError: a file or a name cannot be used.
        """
        self._identities = identities
        directory = identities.settings.home()
        self._key_file, self._file = directory / f"{name}-key.pem", directory / f"{name}.pem"
        self._names = tuple(dict.fromkeys((*identities.settings.names, socket.gethostname(), *_LOCAL_NAMES)))
        self._seconds = identities.settings.server_days * _DAY_SECONDS
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self._is_good(utc(identities.clock())):
            self._make(utc(identities.clock()))
        self._load()

    def renew(self, now: datetime) -> None:
        """Renew it if it is half-way through."""
        if not self._is_good(now):
            self._make(now)
            self._load()
            log.info("identity_listener_certificate_renewed")

    def _is_good(self, now: datetime) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(self._file.read_bytes())
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._file, self._key_file)
        except (FileNotFoundError, ssl.SSLError, ValueError):  # also when the power went between the two files
            return False
        except OSError as error:
            raise IdentityError(f"{self._file} and {self._key_file}: {error}") from error
        fresh = (certificate.not_valid_after_utc - now).total_seconds() > self._seconds / 2
        ours = certificate.issuer == self._identities.ca.services.certificate.subject
        return (
            fresh
            and ours
            and certificate.not_valid_before_utc <= now
            and set(host_names(certificate)) == set(self._names)
        )

    def _make(self, now: datetime) -> None:
        key = new_key()
        life = life_from(now, seconds=self._seconds, backdate_seconds=_DAY_SECONDS)
        issued = self._identities.ca.server(self._names, key.public_key(), life)
        write_file(self._key_file, key_pem(key), PRIVATE)
        write_file(self._file, issued.chain_pem, PUBLIC)

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(self._file, self._key_file)
        except (OSError, ssl.SSLError) as error:
            raise IdentityError(
                f"{self._file} and {self._key_file}: {error}; remove both, they are made anew"
            ) from error


class IdentityComponent:
    """The listener with its service; made anew after a failure."""

    def __init__(self, config: Config, registry: CollectorRegistry, clock: Clock) -> None:
        """Prepare; nothing is opened before `run`.

        Raises:
            ConfigError: the section `identity` cannot be used.
        """
        settings = config.identity
        if settings is None:
            raise ConfigError("the configuration has no section `identity`")
        self._config = config
        self._settings = settings
        self._clock = clock
        self._metrics = IdentityMetrics(registry)
        self._metrics.software_allowed.set(settings.allow_software)
        self._roots = None if settings.ek_roots is None else TrustedRoots.load(settings.ek_roots)
        self._cutters = self._make_cutters()
        self._stopping = asyncio.Event()
        self._server: HttpServer | None = None
        self._warn()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping.set()
        if self._server is not None:
            self._server.stop()

    async def run(self) -> None:
        """Listen until stopped.

        Raises:
            BridgeError: keys, database or address cannot be used.
        """
        if self._stopping.is_set():
            return
        identities = await asyncio.to_thread(open_identities, self._config, self._clock)
        try:
            _ = identities.issuer.bundle_pem  # better no listener than one that has nothing to give
            certificate = ListenerCertificate(identities)
            keeper = self._make_keeper(identities, certificate)
            service = IdentityService(
                self._settings,
                identities.database,
                self._metrics,
                issuer=identities.issuer,
                anchors=identities.anchors,
                keys=identities.keys,
                roots=self._roots,
                clock=self._clock,
            )
            app = create_app(service, self._settings, self._metrics)
            self._server = HttpServer(
                "identity", app, self._settings.host, self._settings.port, tls=certificate.context
            )
            async with asyncio.TaskGroup() as tasks:
                upkeep = tasks.create_task(run_in_thread("identity-keeper", keeper.run, keeper.stop))
                try:
                    await self._server.run()
                finally:
                    keeper.stop()
                    await upkeep
        finally:
            await asyncio.to_thread(identities.database.close)

    def _make_keeper(self, identities: Identities, certificate: ListenerCertificate) -> Keeper:
        settings = self._settings
        return Keeper(
            identities.database,
            self._metrics,
            root=self._config.ingest.root,
            event_days=settings.event_days,
            files=None if settings.broker_directory is None else identities.broker_files(settings.broker_directory),
            broker_pid_file=settings.broker_pid_file,
            cutters=self._cutters,
            renew_listener=certificate.renew,
            clock=self._clock,
        )

    def _make_cutters(self) -> Sequence[SessionCutter]:
        if not self._settings.cut_sessions:
            return ()
        # A broker without certificates takes no notice of revocations anyway.
        with_certificate = [broker for broker in self._config.brokers if broker.certificate_file is not None]
        return [SessionCutter(broker) for broker in with_certificate]

    def _warn(self) -> None:
        if self._settings.allow_software:
            log.warning(
                "identity_software_allowed",
                meaning="devices without a TPM are let in; their keys can be copied",
                remedy="set identity.allow_software: false outside development",
            )
        if self._roots is None:
            log.warning(
                "identity_ek_unchecked",
                meaning="no root of a TPM maker is trusted: a claim token alone vouches for a TPM being one",
                remedy="set identity.ek_roots to a directory with the roots of your TPM makers",
            )
        if self._settings.cut_sessions and not self._cutters:
            log.warning(
                "identity_sessions_not_cut",
                meaning="MQTT connections of revoked devices stay up",
                remedy="give the brokers certificate_file and key_file, see `cloud-bridge broker-config`",
            )
