"""The registry within a bridge: over HTTPS, kept fresh, and closed to strangers where the network can reach it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config
from cloud_bridge.config import Registry as Settings
from cloud_bridge.configload import load
from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.component import ListenerCertificate
from cloud_bridge.identity.issuer import key_pem, life_from, utc
from cloud_bridge.registry.component import RegistryComponent, ask_for_certificates, is_loopback
from cloud_bridge.registry.keeper import RegistryKeeper
from cloud_bridge.registry.metrics import RegistryMetrics
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
    key = ec.generate_private_key(ec.SECP256R1())
    issued = site.identities.ca.device("dock-7", key.public_key(), life_from(utc(site.clock()), seconds=3600))
    (tmp_path / "device.pem").write_bytes(issued.chain_pem + key_pem(key))
    device = trusting(site)
    device.load_cert_chain(tmp_path / "device.pem")
    async with running(site, "0.0.0.0") as url:  # the control is the test above: on loopback nobody is asked
        async with httpx.AsyncClient(verify=device) as http:
            assert (await http.get(f"{url}/metadata/timestamp.json")).status_code == 200
        async with httpx.AsyncClient(verify=trusting(site)) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"{url}/metadata/timestamp.json")


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
