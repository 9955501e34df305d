import pytest
from structlog.testing import capture_logs

from cloud_bridge.errors import BridgeError, GaveUpError
from cloud_bridge.supervisor import RestartPolicy, supervise


class Component:
    """Fails so many times, then returns."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.rests: list[float] = []
        self.counted: list[str] = []

    async def run(self) -> None:
        if self.failures:
            self.failures -= 1
            raise BridgeError("no")

    async def rest(self, seconds: float) -> None:
        self.rests.append(seconds)

    async def supervised(self, policy: RestartPolicy) -> None:
        await supervise("it", self.run, policy, lambda: 0.0, sleep=self.rest, on_failure=self.counted.append)


async def test_a_component_is_started_again_after_growing_rests() -> None:
    component = Component(4)
    await component.supervised(RestartPolicy(None, first_delay_seconds=1, max_delay_seconds=3))
    assert component.rests == [1, 2, 3, 3]
    assert component.counted == ["it"] * 4


async def test_too_many_failures_end_it() -> None:
    component = Component(99)
    with pytest.raises(GaveUpError, match="failed 3 times"):
        await component.supervised(RestartPolicy(2))


async def test_a_trouble_is_logged_when_it_begins_and_when_it_is_over_however_often_it_comes() -> None:
    component = Component(30)
    with capture_logs() as logs:
        await component.supervised(RestartPolicy(None))
    told = [line for line in logs if line["log_level"] != "debug"]
    assert [line["event"] for line in told] == ["component_failed", "component_recovered"]
    assert told[1]["failures"] == 30
    assert sum(line["event"] == "component_failed_again" for line in logs) == 29
