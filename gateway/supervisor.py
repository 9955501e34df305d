"""Runs a component, and runs it again when it has failed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from gateway.errors import GatewayError, GaveUpError

log = structlog.get_logger()

Run = Callable[[], Awaitable[None]]
Clock = Callable[[], float]
"""Monotonic seconds."""
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a component may fail, and how long it rests after each failure.

    The delay doubles with each failure inside the window. With `max_restarts=None` it is tried for ever.
    """

    max_restarts: int | None = 5
    window_seconds: float = 300.0
    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 30.0

    def delay(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row, in seconds."""
        # Beyond 2**30 the cap has long been reached; without a limit the power would overflow one day.
        return min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** min(failures - 1, 30))


def _ignore(_error: BaseException) -> None:
    return None


async def supervise(
    name: str,
    run: Run,
    policy: RestartPolicy,
    clock: Clock,
    sleep: Sleep,
    *,
    on_failure: Callable[[BaseException], None] = _ignore,
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
            on_failure(error)
            if policy.max_restarts is not None and len(failures) > policy.max_restarts:
                message = f"{name} failed {len(failures)} times within {policy.window_seconds:g} s: {error}"
                raise GaveUpError(message) from error
            delay = policy.delay(len(failures))
            if len(failures) == 1 and isinstance(error, GatewayError):
                # Raised on purpose: the message says what is wrong, a traceback would only hide it.
                log.error("component_failed", component=name, error=str(error), restart_in_seconds=delay)
            elif len(failures) == 1:
                log.exception("component_failed", component=name, restart_in_seconds=delay)
            else:
                # What there is to know was told with the first failure; one line is enough for those that follow.
                again = {"failures": len(failures), "restart_in_seconds": delay}
                log.warning("component_failed_again", component=name, error=str(error), **again)
            await sleep(delay)
