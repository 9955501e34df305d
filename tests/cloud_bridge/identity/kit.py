"""A bridge's identity service with knobs, and devices that talk to it through its HTTP application."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from cloud_bridge.config import Identity
from cloud_bridge.identity.app import create_app
from cloud_bridge.identity.approvals import Approval, approve
from cloud_bridge.identity.checks import Checks
from cloud_bridge.identity.claims import Claim, add_claim, id_of_token, new_token
from cloud_bridge.identity.contentkeys import ContentKeys
from cloud_bridge.identity.database import Database, SqliteDatabase
from cloud_bridge.identity.devices import revoke_device
from cloud_bridge.identity.endorsement import TrustedRoots
from cloud_bridge.identity.events import Event, list_events
from cloud_bridge.identity.issuer import Issuer, LocalCa, utc
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.service import Anchors, IdentityService
from cloud_bridge.identity.states import BootState
from tests.simulators.attested_device import AttestedDevice, Post, SoftTpm, SoftwareDevice, Tpm

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
START = 1_790_000_000 * SECOND
TRUST_DOMAIN = "sluice.test"


@dataclass
class Clock:
    """Moved by hand."""

    now_ns: int = START

    def __call__(self) -> int:
        return self.now_ns

    def pass_seconds(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def monotonic(self) -> float:
        return self.now_ns / SECOND


class Caller:
    """Calls an application from code that is not asynchronous, as from the address 192.0.2.7."""

    def __init__(self, app: ASGIApp) -> None:
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 50000))
        self._client = httpx.AsyncClient(transport=transport, base_url="https://bridge")

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, content=body))

    def close(self) -> None:
        self._runner.close()


def poster(app: ASGIApp) -> Post:
    """What a device posts with."""
    caller = Caller(app)
    return lambda path, body: caller.request("POST", path, body).content


@dataclass
class Desk:
    """The bridge's side. Knobs: `settings`, `roots`, `clock`, `database`, `checks`, `issuer`."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    roots: TrustedRoots | None = None
    database: Database | None = None
    checks: Checks | None = None
    issuer: Issuer | None = None
    knobs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = msgspec.convert(
            {
                "trust_domain": TRUST_DOMAIN,
                "directory": str(self.directory),
                "requests_per_minute": 100_000,
                "requests_per_gateway_per_minute": 100_000,
                **self.knobs,
            },
            Identity,
            dec_hook=lambda kind, value: kind(value),
        )
        self.db: Database = self.database or SqliteDatabase(self.directory / "identity.db")
        self.ca = LocalCa.open(self.directory, TRUST_DOMAIN, utc(self.clock()))
        self.keys = ContentKeys(
            self.db,
            self.directory / "content-keys.key",
            lease_seconds=self.settings.lease_days * 86_400,
            clock=self.clock,
        )
        self.registry = CollectorRegistry()
        self.metrics = IdentityMetrics(self.registry)
        self.service = IdentityService(
            self.settings,
            self.db,
            self.metrics,
            issuer=self.issuer or self.ca,
            anchors=Anchors(self.ca.services_pem.decode(), self.ca.services_fingerprint),
            keys=self.keys,
            roots=self.roots,
            clock=self.clock,
            checks=self.checks,
        )
        app = create_app(self.service, self.settings, self.metrics, self.clock.monotonic)
        self._caller = Caller(app)
        self.request = self._caller.request

    def post(self, path: str, body: bytes) -> bytes:
        return self.request("POST", path, body).content

    def token(self, gateway: str, *, seconds: float = 3600, replace: bool = False) -> str:
        token = new_token()
        now_ns = self.clock()
        claim = Claim(id_of_token(token), gateway, "token", replace, now_ns, now_ns + int(seconds * SECOND), None)
        with self.db.transaction() as tx:
            add_claim(tx, claim)
        return token

    def approve(self, name: str, pcrs: dict[int, bytes]) -> None:
        with self.db.transaction() as tx:
            approve(tx, Approval(BootState(name, pcrs), self.clock(), "a test"))

    def revoke(self, gateway: str) -> None:
        with self.db.transaction() as tx:
            revoke_device(tx, gateway, "stolen", self.clock())

    def events(self, gateway: str | None = None) -> list[Event]:
        with self.db.transaction() as tx:
            return list_events(tx, gateway=gateway, limit=1000)

    def kinds(self, gateway: str | None = None) -> set[str]:
        return {event.happening.kind for event in self.events(gateway)}

    def refused(self, code: str) -> float:
        return self.registry.get_sample_value("bridge_identity_refused_total", {"code": code}) or 0.0

    def device(self, gateway: str = "dock-7", tpm: Tpm | None = None) -> AttestedDevice:
        """A device in an approved state."""
        return AttestedDevice(gateway, self.post, tpm or SoftTpm())

    def approve_state_of(self, device: AttestedDevice, name: str = "appliance-1") -> None:
        self.approve(name, device.tpm.pcrs(list(self.settings.pcrs)))

    def enrolled(self, gateway: str = "dock-7", tpm: Tpm | None = None) -> AttestedDevice:
        """A device that is enrolled; the state it is in is approved."""
        device = self.device(gateway, tpm)
        with self.db.transaction() as tx:
            known = tx.rows("SELECT 1 FROM identity_states")
        if not known:
            self.approve_state_of(device)
        device.enrol(self.token(gateway))
        return device

    def software_device(self, gateway: str = "dev-1") -> SoftwareDevice:
        return SoftwareDevice(gateway, self.post)

    def close(self) -> None:
        self._caller.close()
        self.db.close()


@contextmanager
def desk_at(directory: Path, **options: Any) -> Iterator[Desk]:
    names = {"clock", "roots", "database", "checks", "issuer"}
    given = {name: options.pop(name) for name in names & options.keys()}
    desk = Desk(directory, knobs=options, **given)
    try:
        yield desk
    finally:
        desk.close()
