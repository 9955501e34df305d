"""A failed component runs again, later and later, until it is given up."""

import asyncio
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from gateway.errors import GaveUpError, ModelError
from gateway.supervisor import RestartPolicy, Trouble, supervise


@dataclass
class Timeline:
    """A clock that only sleeping moves."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class Component:
    failures: int
    runs: int = 0

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self.failures:
            raise OSError(f"failure {self.runs}")


async def test_a_component_that_returns_is_not_run_again() -> None:
    time, component = Timeline(), Component(failures=0)
    await supervise("c", component.run, RestartPolicy(), time.clock, time.sleep)
    assert (component.runs, time.slept) == (1, [])


async def test_the_delay_doubles_up_to_its_limit() -> None:
    time, component = Timeline(), Component(failures=6)
    policy = RestartPolicy(max_restarts=None, window_seconds=1e9, first_delay_seconds=1, max_delay_seconds=10)
    await supervise("c", component.run, policy, time.clock, time.sleep)
    assert time.slept == [1, 2, 4, 8, 10, 10]


async def test_a_component_that_fails_too_often_is_given_up_with_its_last_error() -> None:
    time, component = Timeline(), Component(failures=99)
    seen: list[BaseException] = []
    policy = RestartPolicy(max_restarts=3, window_seconds=1e9)
    with pytest.raises(GaveUpError, match="c failed 4 times") as caught:
        await supervise("c", component.run, policy, time.clock, time.sleep, on_failure=seen.append)
    assert component.runs == 4
    assert str(caught.value.__cause__) == "failure 4"
    assert len(seen) == 4


async def test_failures_that_are_long_past_do_not_count() -> None:
    time, component = Timeline(), Component(failures=20)
    policy = RestartPolicy(max_restarts=3, window_seconds=30, first_delay_seconds=11, max_delay_seconds=11)
    await supervise("c", component.run, policy, time.clock, time.sleep)
    assert component.runs == 21


async def test_a_patient_policy_goes_on_for_ever() -> None:
    time, component = Timeline(), Component(failures=500)
    policy = RestartPolicy(max_restarts=None, window_seconds=1e12)
    await supervise("c", component.run, policy, time.clock, time.sleep)
    assert component.runs == 501
    assert max(time.slept) == policy.max_delay_seconds


async def test_cancelling_is_no_failure() -> None:
    time = Timeline()
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(supervise("c", wait, RestartPolicy(), time.clock, time.sleep))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.slept == []


@pytest.mark.parametrize(("error", "traceback"), [(ModelError("install it again"), False), (ValueError("a bug"), True)])
async def test_what_was_raised_on_purpose_is_told_in_its_own_words_without_a_traceback(
    error: Exception, traceback: bool
) -> None:
    time, failures = Timeline(), [error]

    async def run() -> None:
        if failures:
            raise failures.pop()

    with capture_logs() as logs:
        await supervise("c", run, RestartPolicy(), time.clock, time.sleep)
    line, end = logs
    assert (line["event"], line["log_level"]) == ("component_failed", "error")
    assert bool(line.get("exc_info")) is traceback
    assert (line.get("error") == "install it again") is not traceback
    assert (end["event"], end["failures"]) == ("component_recovered", 1)


async def test_a_trouble_is_logged_when_it_begins_and_when_it_is_over_however_often_it_comes() -> None:
    time, left = Timeline(), 30

    async def run() -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise ModelError("install it again")

    with capture_logs() as logs:
        await supervise("c", run, RestartPolicy(max_restarts=None), time.clock, time.sleep)
    told = [line for line in logs if line["log_level"] != "debug"]
    assert [line["event"] for line in told] == ["component_failed", "component_recovered"]
    assert told[1]["failures"] == 30
    assert told[1]["after_seconds"] == pytest.approx(sum(time.slept), abs=0.1)
    assert sum(line["event"] == "component_failed_again" for line in logs) == 29


async def test_a_component_that_runs_on_has_recovered() -> None:
    time, runs = Timeline(), 0
    end = asyncio.Event()

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ModelError("not yet")
        await end.wait()

    policy = RestartPolicy(max_restarts=None, first_delay_seconds=0.01, max_delay_seconds=0.01, well_after_seconds=0.01)
    with capture_logs() as logs:
        task = asyncio.get_running_loop().create_task(supervise("c", run, policy, time.clock, time.sleep))
        async with asyncio.timeout(10):
            while not any(line["event"] == "component_recovered" for line in logs):
                await asyncio.sleep(0.01)
        end.set()
        await task
    assert [line["failures"] for line in logs if line["event"] == "component_recovered"] == [2]


def test_another_reason_is_told_too_but_not_one_for_each_time() -> None:
    time = Timeline()
    trouble = Trouble("c", time.clock)
    with capture_logs() as logs:
        for number in range(100):
            trouble.failed(ModelError("missing" if number % 2 else "damaged"), 1.0)
        assert [line["error"] for line in logs if line["event"] == "component_failed"] == ["damaged", "missing"]
        for number in range(100):
            trouble.failed(ModelError(f"at byte {number}"), 1.0)
    assert sum(line["event"] == "component_failed" for line in logs) == 5
