"""Makes samples of captures as the model of a pipeline wants them, also when that changes while the source streams."""

import threading
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
    """One source's way to one model. The capture thread owns `accept`; `change` may be called from any thread."""

    def __init__(self, spec: InputSpec, max_held: int, wrong_kind: Callable[[str, str], ConfigError]) -> None:
        """Take what is wanted.

        Args:
            spec: input of the model.
            max_held: messages of a leaf sensor that may be held only to fill a window.
            wrong_kind: makes the error for a source of the wrong kind, from what it gives and what is wanted.
        """
        self._lock = threading.Lock()
        self._spec = spec
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
            for sample in self._samples(capture):
                put(sample)

    def change(self, spec: InputSpec, follow: Callable[[], None]) -> None:
        """Make samples for another input from now on; `follow` is called behind the last one for the present input.

        A window that is being filled is begun anew.
        """
        with self._lock:
            follow()
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
