"""Makes samples of captures as the model of a pipeline wants them, also when that changes while the source streams."""

import threading
import time
from collections.abc import Callable, Sequence

from gateway.errors import ConfigError
from gateway.holding import Holding
from gateway.preprocess.window import Windower
from gateway.values import Capture, Frame, Sample
from gateway.wire.manifest import ImageInput, WindowInput

InputSpec = ImageInput | WindowInput


def same_samples(one: InputSpec, other: InputSpec) -> bool:
    """Tell whether samples that were made for one input can be looked at by the other: pictures always can."""
    if not isinstance(one, WindowInput) or not isinstance(other, WindowInput):
        return type(one) is type(other)
    return (one.samples, one.hop_samples, one.channels, one.per_channel) == (
        other.samples,
        other.hop_samples,
        other.channels,
        other.per_channel,
    )


def same_source(one: InputSpec, other: InputSpec) -> bool:
    """Tell whether what a source gives for one input is of any use for the other."""
    if not isinstance(one, WindowInput) or not isinstance(other, WindowInput):
        return type(one) is type(other)
    return one.per_channel or other.per_channel or one.channels == other.channels


class Intake:
    """One source's way to one model. The capture thread owns `accept`; the rest may be called from any thread."""

    def __init__(self, spec: InputSpec, max_held: int, wrong_kind: Callable[[str, str], ConfigError]) -> None:
        """Take what is wanted.

        Args:
            spec: input of the model.
            max_held: messages of a leaf sensor that may be held only to fill a window.
            wrong_kind: makes the error for a source of the wrong kind, from what it gives and what is wanted.
        """
        self._lock = threading.Lock()  # held by `accept` while it waits for room, perhaps for as long as a disk is away
        self._spec = spec
        self._recalled: InputSpec | None = None
        self._windower: Windower | None = None
        self._holding = Holding(max_held)
        self._wrong_kind = wrong_kind

    @property
    def spec(self) -> InputSpec:
        """What samples are made for now."""
        return self._spec

    def accept(self, capture: Capture, put: Callable[[Sample], None]) -> None:
        """Hand over the samples that a capture completes, oldest first.

        Raises:
            ConfigError: the source gives what the model cannot look at.
        """
        with self._lock:
            self._go_back()
            for sample in self._samples(capture):
                put(sample)

    def change(self, spec: InputSpec, follow: Callable[[float], bool], timeout_seconds: float) -> bool:
        """Make samples for another input from now on; False: the present ones found no room in time, nothing changes.

        `follow` is called behind the last sample for the present input with the seconds that are left, and tells
        whether it came in. A window that is being filled is begun anew.
        """
        deadline = time.monotonic() + timeout_seconds
        if not self._lock.acquire(timeout=timeout_seconds):
            return False
        try:
            self._go_back()
            if not follow(max(0.0, deadline - time.monotonic())):
                return False
            self._spec, self._windower = spec, None
            return True
        finally:
            self._lock.release()

    def recall(self, spec: InputSpec) -> None:
        """Take a change back with the next capture; does not wait."""
        self._recalled = spec

    def _go_back(self) -> None:
        spec, self._recalled = self._recalled, None
        if spec is not None:
            self._spec, self._windower = spec, None

    def _samples(self, capture: Capture) -> Sequence[Sample]:
        spec = self._spec
        if isinstance(capture, Frame):
            if isinstance(spec, WindowInput):
                raise self._wrong_kind("pictures", "samples of a sensor")
            return [capture]
        if not isinstance(spec, WindowInput):
            raise self._wrong_kind("samples of a sensor", "pictures")
        if self._windower is None:
            channels = capture.samples.shape[1] if spec.per_channel else spec.channels
            self._windower = Windower(samples=spec.samples, hop=spec.hop_samples, channels=channels)
        windows = self._windower.push(capture)
        return self._holding.follow(capture, windows, self._windower.needed)
