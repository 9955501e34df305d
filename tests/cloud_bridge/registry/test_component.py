"""The registry within a bridge: over HTTPS, kept fresh, and closed to strangers where the network can reach it."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config
from cloud_bridge.config import Registry as Settings
from cloud_bridge.configload import load
from cloud_bridge.errors import ConfigError, StoreError
from cloud_bridge.identity.component import ListenerCertificate
from cloud_bridge.identity.devices import note_certificate, revoke_certificates
from cloud_bridge.identity.issuer import key_pem, life_from, utc
from cloud_bridge.registry import admission
from cloud_bridge.registry.admission import Peer
from cloud_bridge.registry.app import BLOCK_BYTES, anybody, create_app
from cloud_bridge.registry.component import RegistryComponent, ask_for_certificates, is_loopback
from cloud_bridge.registry.errors import ForbiddenError
from cloud_bridge.registry.keeper import RegistryKeeper
from cloud_bridge.registry.metrics import RegistryMetrics
from cloud_bridge.registry.publishing import listed_releases
from cloud_bridge.registry.registry import Registry
from cloud_bridge.registry.roles import Signed
from tests.cloud_bridge.registry.kit import Site, release


def component(site: Site, host: str = "127.0.0.1") -> RegistryComponent:
    settings = Settings(url=site.settings.url, keys=site.settings.keys, host=host, port=0)
    config = Config(identity=site.identities.settings, registry=settings)
    return RegistryComponent(config, CollectorRegistry(), site.clock)


@asynccontextmanager
async def running(site: Site, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Run one; yields its URL on loopback."""
    one = component(site, host)
    with structlog.testing.capture_logs() as logs:
        task = asyncio.ensure_future(one.run())  # noqa: TID251  # ended below
        try:
            async with asyncio.timeout(30):
                while not (found := [log for log in logs if log["event"] == "listening"]):
                    if task.done():
                        task.result()
                    await asyncio.sleep(0.01)
            yield f"https://localhost:{found[0]['url'].rstrip('/').rpartition(':')[2]}"
        finally:
            one.stop()
            await asyncio.wait_for(task, 30)


def trusting(site: Site) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=site.identities.ca.services_pem.decode())


def certified(site: Site, directory: Path) -> ssl.SSLContext:
    """A device with a certificate of the hour, as the identity service gives them out."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = site.identities.ca.device("dock-7", key.public_key(), life_from(utc(site.clock()), seconds=3600))
    with site.db.transaction() as tx:
        note_certificate(tx, "dock-7", issued, site.clock())
    (directory / "device.pem").write_bytes(issued.chain_pem + key_pem(key))
    context = trusting(site)
    context.load_cert_chain(directory / "device.pem")
    return context


async def test_the_repository_is_served_with_a_certificate_of_the_bridge(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path))
    async with running(site) as url, httpx.AsyncClient(verify=trusting(site)) as http:
        answer = await http.get(f"{url}/metadata/timestamp.json")
        assert answer.status_code == 200
        assert answer.content == site.registry.read("metadata/timestamp.json")
        assert (await http.get(f"{url}/keys/root.json")).status_code == 404


async def test_over_the_network_only_devices_with_a_certificate_of_the_hour_are_let_in(
    site: Site, tmp_path: Path
) -> None:
    device = certified(site, tmp_path)
    async with running(site, "0.0.0.0") as url:  # the control is the test above: on loopback nobody is asked
        async with httpx.AsyncClient(verify=device) as http:
            assert (await http.get(f"{url}/metadata/timestamp.json")).status_code == 200
        async with httpx.AsyncClient(verify=trusting(site)) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"{url}/metadata/timestamp.json")


async def answers(http: httpx.AsyncClient, url: str, wanted: int, seconds: float = 10.0) -> bool:
    """Ask until the answer has a status."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (await http.get(url)).status_code == wanted:
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("protected", [True, False], ids=["as it is", "the control: nobody asks"])
async def test_a_revoked_certificate_is_refused_soon_on_an_open_connection_and_on_a_new_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, protected: bool
) -> None:
    assert admission.FRESH_SECONDS <= 30, "within a minute, as at the broker"
    monkeypatch.setattr(admission, "FRESH_SECONDS", 0.2)
    if not protected:
        monkeypatch.setattr(admission.Admission, "refusal", staticmethod(anybody))
    device = certified(site, tmp_path)
    async with running(site, "0.0.0.0") as url, httpx.AsyncClient(verify=device) as http:
        file = f"{url}/metadata/timestamp.json"
        assert (await http.get(file)).status_code == 200
        with site.db.transaction() as tx:
            assert revoke_certificates(tx, "dock-7", site.clock()) == 1
        assert await answers(http, file, 403, 10.0 if protected else 1.0) is protected
        async with httpx.AsyncClient(verify=device) as another:
            assert (await another.get(file)).status_code == (403 if protected else 200)


async def test_a_certificate_that_ends_while_its_connection_is_open_must_be_shown_anew(
    site: Site, tmp_path: Path
) -> None:
    async with running(site, "0.0.0.0") as url, httpx.AsyncClient(verify=certified(site, tmp_path)) as http:
        assert (await http.get(f"{url}/metadata/timestamp.json")).status_code == 200
        site.clock.pass_days(1 / 12)
        answer = await http.get(f"{url}/metadata/timestamp.json")
    assert (answer.status_code, answer.headers["connection"]) == (403, "close")


async def test_an_answer_under_way_ends_when_its_certificate_is_revoked(site: Site, tmp_path: Path) -> None:
    refusing = False

    async def refusal(_peer: Peer | None) -> str:
        return "it was revoked" if refusing else ""

    place = "targets/models/m/1.0.0/" + "0" * 64 + ".large"
    site.registry.storage.write(place, bytes(4 * BLOCK_BYTES))
    app = create_app(site.registry, RegistryMetrics(CollectorRegistry()), requests_per_minute=100, refusal=refusal)
    sent: list[int] = []

    async def send(message: Any) -> None:
        nonlocal refusing
        sent.append(len(message.get("body", b"")))
        refusing = len(sent) > 2

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": f"/{place}", "headers": [], "query_string": b"", "state": {}}
    with pytest.raises(ForbiddenError, match="revoked"):
        await app({**scope, "client": ("192.0.2.1", 1)}, receive, send)
    assert sum(sent) == 2 * BLOCK_BYTES


async def test_while_the_database_is_away_the_last_known_list_counts(site: Site) -> None:
    class Away:
        away = False

        def transaction(self, *, durable: bool = True) -> Any:
            if self.away:
                raise StoreError("away")
            return site.db.transaction(durable=durable)

        def close(self) -> None:
            pass

    database, now = Away(), [0.0]
    key = ec.generate_private_key(ec.SECP256R1())
    issued = site.identities.ca.device("dock-7", key.public_key(), life_from(utc(site.clock()), seconds=3600))
    with site.db.transaction() as tx:
        note_certificate(tx, "dock-7", issued, site.clock())
        revoke_certificates(tx, "dock-7", site.clock())
    one = admission.Admission(database, site.clock, monotonic=lambda: now[0])
    peer = Peer(int(issued.serial, 16), site.clock() + 10**9)
    with structlog.testing.capture_logs() as logs:
        assert await one.refusal(peer)
        database.away = True
        for _ in range(3):
            now[0] += 60
            assert await one.refusal(peer)
        database.away = False
        now[0] += 60
        assert await one.refusal(peer)
    assert [log["event"] for log in logs] == [
        "registry_refuses_revoked", "registry_revocations_unknown", "registry_revocations_known_again",
    ]  # fmt: skip


def test_the_listener_has_a_certificate_of_its_own(site: Site) -> None:
    context = ListenerCertificate(site.identities, "registry").context
    home = site.identities.settings.home()
    assert (home / "registry.pem").is_file()
    assert not (home / "listener.pem").exists()
    ask_for_certificates(context, site.identities, "127.0.0.1")
    assert context.verify_mode == ssl.CERT_NONE
    ask_for_certificates(context, site.identities, "::")
    assert context.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("bridge", False)],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_keeper_renews_counts_and_tells_troubles_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    counted = CollectorRegistry()
    keeper = RegistryKeeper(site.registry, RegistryMetrics(counted), site.clock)

    def value(name: str, **labels: str) -> float | None:
        return counted.get_sample_value(f"bridge_registry_{name}", labels)

    with structlog.testing.capture_logs() as logs:
        keeper.round()
        keeper.round()
        assert value("healthy") == 0
        site.begin()
        site.publish(release(tmp_path))
        keeper.round()
        site.clock.pass_days(4)
        keeper.round()
    events = [
        log["event"] for log in logs if log["event"].startswith("registry_") and log["event"] != "registry_initialised"
    ]
    assert events == ["registry_not_initialised", "registry_works_again", "registry_metadata_renewed"]
    assert value("healthy") == 1
    assert value("renewals_total") == 1
    assert value("releases", state="approved") == 1
    assert (value("metadata_expires_seconds", role="timestamp") or 0) > site.clock.now_ns / 1e9 + 6 * 86_400
    site.db.close()


class Slow:
    """A repository whose reader is overtaken: when it has read for the first time, `then` happens."""

    def __init__(self, registry: Registry, then: Callable[[], object]) -> None:
        self.read = registry.repository.load
        self.then = [then]
        self.first: list[Signed] = []
        vars(registry.repository)["load"] = self.load

    def load(self, **how: Any) -> Signed:
        found = self.read(**how)
        self.first.append(found)
        if self.then:
            self.then.pop()()
        return found


def test_what_is_published_while_the_keeper_looks_stays_published(tmp_path: Path) -> None:
    site = Site(tmp_path / "site").begin()
    keeper = Site(tmp_path / "site", clock=site.clock)  # of another process
    slow = Slow(keeper.registry, lambda: site.publish(release(tmp_path)))
    assert keeper.registry.refresh().settled == ()
    assert [one.state for one in site.registry.releases()] == ["approved"]
    assert [one.yanked_ns for one in site.registry.releases()] == [None]
    # Control: by what was read first the release is not there, and would be taken back.
    (entry,) = site.registry.ledger.settle(listed_releases(slow.first[0].targets))
    assert entry.yanked_ns is not None
    (entry,) = keeper.registry.refresh().settled
    assert entry.yanked_ns is None
    site.db.close()
    keeper.db.close()


def test_a_round_in_which_nothing_changed_waits_for_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path / "site").begin()
    site.publish(release(tmp_path))
    with site.registry.repository.lock.held(), ThreadPoolExecutor(1) as thread:
        assert thread.submit(site.registry.refresh).result(20).settled == ()
    site.db.close()


def test_without_identities_there_is_no_registry(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="identity"):
        RegistryComponent(Config(registry=Settings()), CollectorRegistry(), lambda: 0)


def test_paths_of_the_section_lie_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    file.write_text("registry: {url: releases, keys: keys}\n")
    found = load(file).registry
    assert found is not None
    assert (found.url, found.keys) == (str(tmp_path / "releases"), tmp_path / "keys")
    file.write_text("registry: {url: 's3://bucket/models'}\n")
    found = load(file).registry
    assert found is not None
    assert found.url == "s3://bucket/models"
