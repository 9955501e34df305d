"""Runs a component, and runs it again when it has failed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from cloud_bridge.errors import GaveUpError

log = structlog.get_logger()

Run = Callable[[], Awaitable[None]]
Clock = Callable[[], float]
"""Monotonic seconds."""
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a component may fail, and how long it rests; with `max_restarts=None` it is tried for ever."""

    max_restarts: int | None = 10
    window_seconds: float = 300.0
    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 30.0

    def delay(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row, in seconds."""
        return min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** min(failures - 1, 30))


async def supervise(
    name: str,
    run: Run,
    policy: RestartPolicy,
    clock: Clock,
    *,
    sleep: Sleep,
    on_failure: Callable[[str], None],
) -> None:
    """Run a component until it returns; restart it after a failure, unless it fails too often.

    Raises:
        GaveUpError: more than `max_restarts` failures within the window; the last one is its cause.
    """
    failures: list[float] = []
    while True:
        try:
            return await run()
        except Exception as error:  # the one place that catches everything
            now = clock()
            failures = [*(at for at in failures if now - at < policy.window_seconds), now]
            on_failure(name)
            if policy.max_restarts is not None and len(failures) > policy.max_restarts:
                raise GaveUpError(f"{name} failed {len(failures)} times: {error}") from error
            delay = policy.delay(len(failures))
            log.exception("component_failed", component=name, failures=len(failures), restart_in_seconds=delay)
            await sleep(delay)
