"""Fixtures of the console's tests."""

from collections.abc import AsyncIterator

import httpx
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from tests.simulators.bridge_data import BridgeData, a_fleet


def metrics_text() -> bytes:
    """Stand in for the registry of the bridge."""
    return b"# HELP sluice_bridge_records_total Records.\n"


@pytest.fixture
def data() -> BridgeData:
    """Two gateways with a little of everything."""
    return a_fleet()


@pytest.fixture
async def client(data: BridgeData) -> AsyncIterator[httpx.AsyncClient]:
    """The console on loopback without a token."""
    app = create_app(data, ConsoleSettings(), metrics_text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470") as client:
        yield client
