"""One thread for one source: opens it, hands on what is fresh, opens it again when it is lost, for ever."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event, Lock, Thread
from typing import Literal

import structlog

from gateway.errors import GatewayError, SourceLostError
from gateway.sources.base import Lingering, Source, WallClock
from gateway.sources.fresh import FreshnessGuard, Verdict
from gateway.sources.still import StillnessWatch
from gateway.values import Capture, Frame, SampleBlock

log = structlog.get_logger()

State = Literal["opening", "streaming", "lost", "frozen", "ended"]

STOP_SECONDS = 2.0
LOOK_EVERY_SECONDS = 1.0
"""A device that is not there is looked for so often where nobody tells that it has come; looking opens nothing."""
STEADY_SECONDS = 5.0
"""A source that streamed for so long is well again: its next loss starts with the shortest wait."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """How a source is doing."""

    source: str
    state: State
    since_ns: int  # UTC
    error: str = ""  # the last one; kept after the source is back
    reopens: int = 0  # how often it was opened again


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before opening again: anything between 0 and a limit that doubles up to `cap_seconds`.

    Full jitter, so that the sources behind one rebooting switch do not all come back in the same instant. The cap is
    short because the device is on this site and costs little to ask: a camera is back within ten seconds of its return.
    """

    first_seconds: float = 0.5
    cap_seconds: float = 8.0

    def seconds(self, failures: int, chance: float) -> float:
        """Return the wait after so many failures in a row (1 is the first); `chance` is 0..1."""
        return chance * min(self.cap_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30))


class CaptureThread:
    """Owns one source. `deliver` and `on_state` are called on its thread `capture-<name>`.

    `deliver` may block (a bounded hand-off); who stops the thread must close the hand-off first.
    """

    def __init__(
        self,
        name: str,
        open: Callable[[], Source],  # noqa: A002
        deliver: Callable[[Capture], object],
        on_state: Callable[[SourceState], object],
        *,
        guard: FreshnessGuard | None = None,
        watch: StillnessWatch | None = None,
        backoff: Backoff | None = None,
        reopen_frozen_after_seconds: float = 60.0,
        there: Callable[[], bool] | None = None,
        wall_clock: WallClock = time.time_ns,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Make the thread; `start` starts it.

        Args:
            name: the source's name in the configuration.
            open: makes a new source each time, e.g. a partial of `open_source`.
            deliver: takes each fresh capture.
            on_state: told when the state or the error changes.
            guard: decides which frames are fresh (`fresh.guard_for`); None lets all through.
            backoff: the waits between attempts.
            reopen_frozen_after_seconds: a picture frozen for so long after opening has its device opened again.
            there: whether the device is there at all; while it is not, it is not opened. None: nobody can tell.
            wall_clock: UTC in nanoseconds.
            chance: random numbers 0..1 for the jitter.
        """
        self._name = name
        self._open = open
        self._deliver = deliver
        self._on_state = on_state
        self._guard = guard
        self._watch = watch
        self._backoff = backoff or Backoff()
        self._reopen_frozen_ns = round(reopen_frozen_after_seconds * 1e9)
        self._there = there
        self._wall_clock = wall_clock
        self._chance = chance
        self._stopping = Event()
        self._called = Event()  # something is to be looked at before the wait is over
        self._unplugged = False
        self._absent = False
        self._lock = Lock()
        self._source: Source | None = None
        self._before: Lingering | None = None  # the one that was closed last
        self._past_drops: Counter[str] = Counter()
        self._guard_drops: Counter[str] = Counter()
        self._state = SourceState(name, "opening", wall_clock())
        self._outage_since_ns: int | None = None
        self._sequence = 0
        self._delivered = 0
        self._thread = Thread(target=self._run, name=f"capture-{name}", daemon=True)

    @property
    def state(self) -> SourceState:
        """How the source is doing now."""
        return self._state

    @property
    def delivered(self) -> int:
        """Captures handed on so far."""
        return self._delivered

    @property
    def uniform(self) -> int:
        """Pictures of a single colour among those handed on: a covered lens or a broken decoder."""
        return self._guard.uniform if self._guard else 0

    @property
    def drops(self) -> dict[str, int]:
        """What was thrown away since the start, by reason, over all openings."""
        with self._lock:
            counts = self._past_drops + self._guard_drops
            if self._source is not None:
                counts.update(self._source.drops)
        return dict(counts)

    @property
    def absent(self) -> bool:
        """Whether it waits for its device to be there again."""
        return self._absent

    def look_again(self) -> None:
        """Act on a device that may have come or gone, at once; from any thread.

        One that has gone is closed, rather than waited for until a driver's time-out. One that has come is opened.
        """
        if self._there is not None and not self._there():
            with self._lock:
                if self._source is not None:
                    self._unplugged = True
                    self._source.close()
        self._called.set()

    def start(self) -> None:
        """Start capturing."""
        self._on_state(self._state)
        self._thread.start()

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> bool:
        """End the capturing. False if the thread still hangs in its device; it dies with the process."""
        self._stopping.set()
        self._called.set()
        with self._lock:
            if self._source is not None:
                self._source.close()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            log.warning("capture_thread_hangs", source=self._name, waited_seconds=timeout_seconds)
            return False
        return True

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait until a finite recording has ended; False after the time-out."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            delivered = self._delivered
            try:
                self._stream()
                return
            except GatewayError as error:
                self._lost(str(error))
            except Exception as error:  # the thread is supervised here: a driver's bug must not end it
                if self._outage_since_ns is None:
                    log.exception("capture_failed", source=self._name)
                self._lost(f"{type(error).__name__}: {error}")
            well = self._delivered > delivered and time.monotonic() - started >= STEADY_SECONDS
            failures = 1 if well else failures + 1
            if self._rest(failures):
                failures = 0
            self._state = replace(self._state, reopens=self._state.reopens + 1)

    def _rest(self, failures: int) -> bool:
        """Wait before opening again. True if the device came meanwhile: what failed before says nothing of it."""
        self._called.clear()
        if self._there is None or self._there():
            return self._called.wait(self._backoff.seconds(failures, self._chance()))
        self._absent = True
        while not (self._stopping.is_set() or self._there()):
            self._called.wait(LOOK_EVERY_SECONDS)
            self._called.clear()
        self._absent = False
        return True

    def _stream(self) -> None:
        """Open the source and hand on what it gives, until there is nothing more to come."""
        if self._before is not None and self._before.lingers:
            # One after the other would wait in the same driver, each with a thread and an open device.
            raise SourceLostError(
                f"source {self._name}: what read it before still hangs in the device; it is opened again when that has "
                "ended: check its power, its cable and the network, then restart the gateway"
            )
        source = self._open()
        with self._lock:
            self._source, self._unplugged = source, False
            if self._stopping.is_set():
                source.close()
        try:
            opened_ns = time.monotonic_ns()
            base = self._sequence
            for capture in source.captures():
                if self._stopping.is_set():
                    break
                self._take(capture, base, opened_ns)
            if self._unplugged and not self._stopping.is_set():
                raise SourceLostError(f"source {self._name}: its device was unplugged; it goes on when it is back")
        finally:
            source.close()
            with self._lock:
                self._past_drops.update(source.drops)
                self._source = None
            self._before = source if isinstance(source, Lingering) else None
        if not self._stopping.is_set():
            self._change("ended")
            log.info("source_ended", source=self._name, delivered=self._delivered)

    def _take(self, capture: Capture, base: int, opened_ns: int) -> None:
        if isinstance(capture, Frame):
            # A source counts from 1 each time it is opened; here the numbers go on.
            capture = replace(capture, sequence=base + capture.sequence) if base else capture
            self._sequence = capture.sequence
            verdict: Verdict = self._guard.judge(capture) if self._guard else "fresh"
            if verdict != "fresh":
                self._withhold(capture, verdict, opened_ns)
                return
        if not self._stands_still(capture) and self._state.state != "streaming":
            self._returned()
        self._delivered += 1
        self._deliver(capture)

    def _stands_still(self, capture: Capture) -> bool:
        """Tell whether a sensor says the same again and again.

        What it says is handed on all the same: other channels may be well, and a model may know a dead sensor.
        """
        still = self._watch.frozen_channels(capture) if self._watch and isinstance(capture, SampleBlock) else ()
        if not still:
            return False
        names = ", ".join(str(channel) for channel in still)
        if self._state.state != "frozen":
            if self._outage_begins():
                log.warning("source_frozen", source=self._name, channels=list(still))
            self._change("frozen", f"channel {names} does not change any more; check the sensor and its wiring")
        return True

    def _withhold(self, frame: Frame, verdict: Verdict, opened_ns: int) -> None:
        with self._lock:
            self._guard_drops[verdict] += 1
        if verdict != "frozen":
            return
        if self._state.state != "frozen":
            if self._outage_begins():
                log.warning("source_frozen", source=self._name)
            self._change("frozen", "the camera sends the same picture again and again; it is not looked at any more")
        if frame.received_ns - opened_ns > self._reopen_frozen_ns:
            raise SourceLostError(
                f"source {self._name}: the picture stays frozen; opening the camera again. If it comes back frozen, "
                "restart the camera"
            )

    def _returned(self) -> None:
        if self._outage_since_ns is not None:
            log.info(
                "source_returned",
                source=self._name,
                after_seconds=round((self._wall_clock() - self._outage_since_ns) / 1e9, 1),
                reopens=self._state.reopens,
            )
            self._outage_since_ns = None
        self._change("streaming")

    def _lost(self, error: str) -> None:
        if self._stopping.is_set():
            return
        if self._outage_begins():
            log.warning("source_lost", source=self._name, error=error)
        self._change("lost", error)

    def _outage_begins(self) -> bool:
        """Note that the source is out. True the first time, so that an outage is logged once, however it goes on."""
        if self._outage_since_ns is not None:
            return False
        self._outage_since_ns = self._wall_clock()
        return True

    def _change(self, state: State, error: str = "") -> None:
        """Tell a new state, or a new error in the same state."""
        before = self._state
        error = error or before.error
        if (state, error) == (before.state, before.error):
            return
        since_ns = before.since_ns if state == before.state else self._wall_clock()
        self._state = SourceState(self._name, state, since_ns, error, before.reopens)
        self._on_state(self._state)
