"""Rollouts within a bridge: threads that start, stop, and end together."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from cloud_bridge.config import Broker, Config, Identity, Ingest, Registry, Rollout, Store
from cloud_bridge.identity.database import open_database
from cloud_bridge.identity.devices import Device, put_device, revoke_device
from cloud_bridge.metrics import Metrics
from cloud_bridge.registry.release import ReleaseEntry
from cloud_bridge.rollout.component import RolloutComponent, links_of
from cloud_bridge.rollout.registered import RegisteredReleases, open_releases, open_revoked
from cloud_bridge.rollout.releases import Release
from gateway.wire.topics import filter_for
from tests.cloud_bridge.registry.kit import Site, release
from tests.simulators.fleet_store import FleetStore


def config_at(directory: Path) -> Config:
    nobody = Broker(url="mqtt://127.0.0.1:9")
    store = Store(url=f"sqlite:///{directory}/bridge.db")
    return Config(brokers=[nobody, nobody], store=store, rollout=Rollout(enabled=True, every_seconds=0.05))


async def test_it_runs_without_a_broker_and_stops_when_told(tmp_path: Path) -> None:
    store = FleetStore()
    component = RolloutComponent(config_at(tmp_path), store, Metrics(), client_id="bridge")
    running = asyncio.create_task(component.run())  # noqa: TID251  # a test
    async with asyncio.timeout(20):
        while not (tmp_path / "fleet.db").exists():
            await asyncio.sleep(0.01)
        component.stop()
        await running
        await component.run()  # stopped before it began: returns at once


async def test_it_ends_with_its_task(tmp_path: Path) -> None:
    component = RolloutComponent(config_at(tmp_path), FleetStore(), Metrics(), client_id="bridge")
    running = asyncio.create_task(component.run())  # noqa: TID251  # a test
    async with asyncio.timeout(20):
        while not (tmp_path / "fleet.db").exists():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


def test_each_broker_has_a_link_of_its_own_that_takes_reports_alone(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    links = links_of(config, "bridge")
    assert [link.client_id for link in links] == ["bridge-twins", "bridge-1-twins"]
    assert {link.only for link in links} == {(filter_for("twin", name="reported", root=Ingest().root),)}


def test_devices_that_were_revoked_are_asked_for_where_there_are_identities(tmp_path: Path) -> None:
    assert open_revoked(Config())() == ()
    config = config_at(tmp_path)
    config = msgspec.structs.replace(
        config, identity=Identity(trust_domain="sluice.test", directory=tmp_path / "identity")
    )
    assert config.identity is not None
    database = open_database(config.store, config.identity.home())
    with database.transaction() as tx:
        for name in ("gw-1", "gw-2"):
            put_device(tx, Device(name, "software", "", False, b"ak", b"to", "", "1", "", 1, 1, 1))
        revoke_device(tx, "gw-1", "scrapped", 2)
    assert list(open_revoked(config)()) == ["gw-1"]
    database.close()


def test_rollouts_are_on_with_a_registry_or_when_asked_for() -> None:
    assert not Config().gives_rollouts
    assert Config(registry=Registry()).gives_rollouts
    assert Config(rollout=Rollout(enabled=True)).gives_rollouts
    assert not Config(registry=Registry(), rollout=Rollout(enabled=False)).gives_rollouts


def test_without_a_registry_nobody_is_asked_about_releases() -> None:
    assert open_releases(Config()) is None


def test_a_release_that_the_registry_does_not_have_is_unknown() -> None:
    class Nothing:
        def find(self, name: str, version: str) -> None:
            return None

        def releases(self) -> list[ReleaseEntry]:
            return []

    assert RegisteredReleases(Nothing()).state_of(Release("m", "1.0.0")) == "unknown"
    assert RegisteredReleases(Nothing()).before(Release("m", "1.0.0")) is None


def test_before_a_release_is_the_newest_lower_version_that_is_approved_and_not_taken_back(tmp_path: Path) -> None:
    site = Site(tmp_path).begin()
    for version in ("1.2.0", "1.9.0", "1.10.0", "1.11.0", "2.0.0"):
        site.publish(release(tmp_path, version), candidate=version == "1.11.0")
    site.registry.yank("detector", "1.10.0", "it was bad")
    known = RegisteredReleases(site.registry.ledger)
    assert known.before(Release("detector", "2.0.0")) == Release("detector", "1.9.0")
    assert known.before(Release("detector", "1.9.0")) == Release("detector", "1.2.0")
    assert known.before(Release("detector", "1.2.0")) is None
    site.db.close()
