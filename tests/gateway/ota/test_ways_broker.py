"""Both ends of `ota/request` and `ota/reply` over a real broker: the uplink's link here, the bridge's part there."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Broker as BridgeBroker
from cloud_bridge.config import Ingest
from cloud_bridge.ingest.consumer import Link
from cloud_bridge.metrics import Metrics
from cloud_bridge.registry.errors import NotFoundError
from cloud_bridge.registry.over_mqtt import PartMetrics, PartServer
from gateway.config import Broker, Budget, Cloud, FeatureMetering, Metering
from gateway.metering.ledger import Ledger
from gateway.metering.meter import Meter
from gateway.ota.errors import BudgetError
from gateway.ota.fetch_pace import Limits
from gateway.ota.ways_mqtt import MqttWay
from gateway.uplink.uplink import Uplink
from tests.gateway.ota.trust_rig import Device
from tests.gateway.uplink.mosquitto import Mosquitto
from tests.gateway.uplink.waiting import running, until
from tests.simulators.hostile_repository import SignedRepository
from tests.simulators.record_store import MemoryStore

pytestmark = pytest.mark.net

SEALED = os.urandom(2_000_000)
PATIENT = Limits(deadline_seconds=60.0, min_bytes_per_second=64, window_seconds=10.0)


class ServedFiles:
    """The files of a repository, as the registry gives them out."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, path: str, offset: int, length: int) -> bytes:
        return self._find(path)[offset : offset + length]

    def size(self, path: str) -> int:
        return len(self._find(path))

    def _find(self, path: str) -> bytes:
        if path not in self.files:
            raise NotFoundError(path)
        return self.files[path]


class Site:
    """A device whose only way is the broker."""

    def __init__(self, directory: Path, broker: Mosquitto, served: SignedRepository, metering: Metering) -> None:
        self.broker = broker
        self.served = served
        self.meter = Meter(metering, UTC, Ledger(directory / "link-usage.json"))
        self.uplink = Uplink(
            Cloud(brokers=[Broker(url=broker.url)]), "dock-7", "sluice", MemoryStore(), meter=self.meter
        )
        (directory / "state").mkdir()
        self.device = Device(directory / "state", served, directory / "stick", meter=self.meter)
        self.way = MqttWay(self.uplink.parts, monotonic_ns=time.monotonic_ns, answer_seconds=2.0)
        self.repository = self.device.repository(self.way, metadata_limits=PATIENT, file_limits=PATIENT)

    def bridge(self) -> PartServer:
        link = Link("bridge-ota", BridgeBroker(url=self.broker.url), None, watches_fleet=False)
        parts = PartMetrics(CollectorRegistry())
        return PartServer(link, Ingest(), ServedFiles(self.served.files), Metrics(), parts)


@asynccontextmanager
async def site_at(directory: Path, metering: Metering) -> AsyncIterator[Site]:
    served = SignedRepository()
    served.add_release("press", "1.0.0", sealed=SEALED)
    served.publish()
    broker = Mosquitto(directory)
    broker.start()
    try:
        site = Site(directory, broker, served, metering)
        bridge = site.bridge()
        async with running(site.uplink.run()):
            answering = asyncio.get_running_loop().create_task(bridge.run())
            try:
                await until(lambda: site.uplink.status().link.state == "connected", what="the device is connected")
                yield site
            finally:
                bridge.stop()
                await answering
    finally:
        broker.kill()


async def test_a_device_that_reaches_only_the_broker_gets_its_release(tmp_path: Path) -> None:
    async with site_at(tmp_path, Metering()) as site:
        await asyncio.to_thread(site.repository.refresh)
        offer = await asyncio.to_thread(site.repository.offer, "press", "1.0.0")
        got = await asyncio.to_thread(site.repository.fetch, offer.files[-1], tmp_path / "got")
        assert got.read_bytes() == SEALED
        downloads = site.meter.usage().features["model_downloads"]
        assert len(SEALED) < downloads.received_bytes < len(SEALED) * 1.02 + 20_000
        assert downloads.sent_bytes > 0


async def test_a_broker_that_dies_on_the_way_costs_nothing_that_came(tmp_path: Path) -> None:
    async with site_at(tmp_path, Metering()) as site:
        await asyncio.to_thread(site.repository.refresh)
        offer = await asyncio.to_thread(site.repository.offer, "press", "1.0.0")
        have: list[int] = []
        fetching = asyncio.get_running_loop().create_task(
            asyncio.to_thread(site.repository.fetch, offer.files[-1], tmp_path / "got", have.append)
        )
        await until(lambda: have and have[-1] > 100_000, what="something came")
        site.broker.kill()
        site.broker.start()
        await fetching
        assert (tmp_path / "got").read_bytes() == SEALED
        assert have == sorted(have)


async def test_a_budget_holds_for_what_comes_over_the_broker(tmp_path: Path) -> None:
    metering = Metering(features={"model_downloads": FeatureMetering(budget=Budget(bytes=100_000, per="month"))})
    async with site_at(tmp_path, metering) as site:
        await asyncio.to_thread(site.repository.refresh)
        offer = await asyncio.to_thread(site.repository.offer, "press", "1.0.0")
        with pytest.raises(BudgetError):
            await asyncio.to_thread(site.repository.fetch, offer.files[-1], tmp_path / "got")
        assert 50_000 < site.meter.usage().features["model_downloads"].received_bytes <= 101_000
