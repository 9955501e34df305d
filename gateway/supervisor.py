"""Runs a component, and runs it again when it has failed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.errors import GatewayError, GaveUpError

log = structlog.get_logger()

Run = Callable[[], Awaitable[None]]
Clock = Callable[[], float]
"""Monotonic seconds."""
Sleep = Callable[[float], Awaitable[None]]

_REASONS: Final = 5
"""So many different reasons are told of one trouble; an error that never says the same twice must not fill the log."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a component may fail, and how long it rests after each failure.

    The delay doubles with each failure inside the window. With `max_restarts=None` it is tried for ever.
    """

    max_restarts: int | None = 5
    window_seconds: float = 300.0
    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 30.0
    well_after_seconds: float = 3.0  # what has run for so long, and for as long as it rested, has recovered

    def delay(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row, in seconds."""
        # Beyond 2**30 the cap has long been reached; without a limit the power would overflow one day.
        return min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** min(failures - 1, 30))


def _ignore(_error: BaseException) -> None:
    return None


class Trouble:
    """What the log says of a component that fails: that it began, each new reason, and that it is over."""

    def __init__(self, component: str, clock: Clock) -> None:
        self._component = component
        self._clock = clock
        self._began: float | None = None
        self._failures = 0
        self._reasons: set[str] = set()

    def failed(self, error: BaseException, restart_in_seconds: float) -> None:
        """Take note of a failure. One that was told already is shown to who debugs, and counted."""
        reason = _words(error)
        if self._began is None:
            self._began = self._clock()
        self._failures += 1
        more = {"failures": self._failures, "restart_in_seconds": restart_in_seconds}
        if reason in self._reasons or len(self._reasons) >= _REASONS:
            log.debug("component_failed_again", component=self._component, error=reason, **more)
        elif isinstance(error, GatewayError):
            # Raised on purpose: the message says what is wrong, a traceback would only hide it.
            log.error("component_failed", component=self._component, error=reason, **more)
        else:
            log.error("component_failed", component=self._component, exc_info=error, **more)
        self._reasons.add(reason)

    def over(self) -> None:
        """Take note that the component runs again, or has come to its end; says nothing where there was no trouble."""
        if self._began is None:
            return
        seconds = round(self._clock() - self._began, 1)
        log.info("component_recovered", component=self._component, failures=self._failures, after_seconds=seconds)
        self._began = None
        self._failures = 0
        self._reasons.clear()


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"


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

    That it fails is logged once for each reason, and once more, with how often, when it has recovered.

    Raises:
        GaveUpError: more than `max_restarts` failures within the window; the last one is its cause.
    """
    failures: list[float] = []
    trouble = Trouble(name, clock)
    rested_seconds = 0.0
    while True:
        well_after = max(policy.well_after_seconds, rested_seconds)
        well = asyncio.get_running_loop().call_later(well_after, trouble.over)
        try:
            await run()
            return trouble.over()
        except Exception as error:  # the one place that catches everything
            now = clock()
            failures = [*(at for at in failures if now - at < policy.window_seconds), now]
            on_failure(error)
            if policy.max_restarts is not None and len(failures) > policy.max_restarts:
                message = f"{name} failed {len(failures)} times within {policy.window_seconds:g} s: {error}"
                raise GaveUpError(message) from error
            rested_seconds = policy.delay(len(failures))
            trouble.failed(error, rested_seconds)
        finally:
            well.cancel()
        await sleep(rested_seconds)
