import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.config import Config, HealthSource, Vault
from gateway.config import Gateway as GatewaySettings
from gateway.config import Pipeline as PipelineSettings
from gateway.configload import Reading
from gateway.configload.problems import Problem
from gateway.errors import ConfigError
from gateway.reload import Reload, changed_keys

RUNNING = Config(
    gateway=GatewaySettings(id="gw-1"),
    vault=Vault(level="software"),
    sources={"own": HealthSource(rate_hz=1.0), "other": HealthSource(rate_hz=1.0)},
    pipelines={"own": PipelineSettings(source="own", model="calm")},
)
OTHER = msgspec.structs.replace(RUNNING, sources={"own": HealthSource(rate_hz=2.0)}, pipelines={})
RENAMED = msgspec.structs.replace(OTHER, gateway=GatewaySettings(id="gw-2"))


class Asked:
    """A file that is read again, and what is told of it."""

    def __init__(self, *readings: Reading | ConfigError) -> None:
        self.readings = list(readings)
        self.told: list[str] = []

    def read(self) -> Reading:
        reading = self.readings.pop(0)
        if isinstance(reading, ConfigError):
            raise reading
        return reading

    def reload(self) -> Reload:
        return Reload(RUNNING, self.read, self.told.append)


async def outcome(reload: Reload, asked: Asked, until: Callable[[], bool]) -> bool:
    """Ask until the file was read often enough; tells whether the gateway is to begin anew."""
    task = asyncio.get_running_loop().create_task(reload.changed())
    async with asyncio.timeout(10):
        while not until() and not task.done():
            reload.ask()
            await asyncio.sleep(0.01)
    anew = task.done()
    task.cancel()
    return anew


def test_keys_that_differ_are_named_without_their_values() -> None:
    assert changed_keys(RUNNING, RUNNING) == []
    assert changed_keys(RUNNING, OTHER) == ["sources.own.rate_hz", "sources.other", "pipelines.own"]
    secret = msgspec.structs.replace(RUNNING, gateway=GatewaySettings(id="gw-1", state_directory=Path("/hidden")))
    assert changed_keys(RUNNING, secret) == ["gateway.state_directory"]


async def test_a_changed_valid_file_is_taken_over() -> None:
    asked = Asked(Reading(OTHER, []))
    with capture_logs() as logs:
        assert await outcome(asked.reload(), asked, lambda: False)
    (line,) = logs
    assert (line["event"], line["changed"][0]) == ("reload_begins", "sources.own.rate_hz")


@pytest.mark.parametrize(
    ("reading", "event", "words"),
    [
        (Reading(RUNNING, []), "reload_changed_nothing", "nothing has changed"),
        (Reading(None, [Problem(7, 3, "pipelines.own", "no such source")]), "reload_refused", "line 7: pipelines.own"),
        (ConfigError("gateway.yaml: Permission denied"), "reload_refused", "Permission denied"),
        (Reading(RENAMED, []), "reload_refused", "gateway.id: stop the gateway"),
    ],
)
async def test_anything_else_leaves_the_gateway_as_it_is_and_says_why(
    reading: Reading | ConfigError, event: str, words: str
) -> None:
    asked = Asked(*[reading] * 1000)
    with capture_logs() as logs:
        assert not await outcome(asked.reload(), asked, lambda: bool(asked.told))
    assert logs[0]["event"] == event
    assert words in asked.told[0]


async def test_after_a_refusal_a_good_file_is_taken() -> None:
    asked = Asked(ConfigError("gone"), Reading(RUNNING, []), Reading(OTHER, []))
    assert await outcome(asked.reload(), asked, lambda: False)
    assert len(asked.told) == 2
