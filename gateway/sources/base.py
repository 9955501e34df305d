"""What every source offers, and the one place that turns a part of the configuration into a source."""

from collections.abc import Callable, Iterator
from threading import Event, Lock
from typing import Protocol, runtime_checkable

import structlog

from gateway.config import (
    CameraSource,
    HealthSource,
    IioSource,
    ModbusSource,
    MqttSource,
    ReplaySource,
    SerialSource,
)
from gateway.config import Source as SourceSettings
from gateway.errors import ConfigError
from gateway.values import Capture, Held

log = structlog.get_logger()

WallClock = Callable[[], int]
"""UTC in nanoseconds, as `time.time_ns`."""


class OnMessage(Protocol):
    """Told the topic and the payload, on the thread of the MQTT client; it must not block.

    With `held` the broker keeps the message until that is told that it is done.
    """

    def __call__(self, topic: str, payload: bytes, held: Held | None = None, /) -> None: ...


Subscribe = Callable[[str, OnMessage], Callable[[], None]]
"""Subscribe to a topic filter of the local broker; what is returned ends the subscription."""

SAMPLES_PER_BLOCK_SECONDS = 0.05
"""Without a configured block size a sensor hands over twenty blocks a second, or single samples if it is slower."""


class Source(Protocol):
    """A device, a recording or a topic. Used once: to open it again, make a new one."""

    @property
    def name(self) -> str:
        """The name it has in the configuration."""

    @property
    def drops(self) -> dict[str, int]:
        """What was thrown away so far, by reason."""

    def captures(self) -> Iterator[Capture]:
        """Open the device, then yield what it gives, blocking in between.

        Returns when a finite recording ends, and soon after `close`.

        Raises:
            SourceLostError: the device cannot be opened or stopped answering; the message names it and the remedy.
            ConfigError: opening it again will not help before a person changes something.
        """

    def close(self) -> None:
        """Make `captures` return soon. Never blocks; any thread may call it, more than once."""


@runtime_checkable
class Lingering(Protocol):
    """A source whose reader may outlive it, as one that hangs in a driver does."""

    @property
    def lingers(self) -> bool:
        """Whether it is still in the device."""


class Drops:
    """Counts what was thrown away, by reason; says so once a reason."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = Lock()
        self._counts: dict[str, int] = {}

    def count(self, reason: str, amount: int = 1, detail: str = "") -> None:
        """Add to a reason; the first time, warn. `detail` must not hold payloads or secrets."""
        if amount <= 0:
            return
        with self._lock:
            before = self._counts.get(reason, 0)
            self._counts[reason] = before + amount
        if not before:
            log.warning("capture_dropped", source=self._source, reason=reason, detail=detail, further="only counted")

    def by_reason(self) -> dict[str, int]:
        """Return a copy of the counts."""
        with self._lock:
            return dict(self._counts)


class ClosableSource:
    """What all sources have in common: a name, their drops, and a way to be told to stop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._drops = Drops(name)
        self._closing = Event()

    @property
    def name(self) -> str:
        """The name it has in the configuration."""
        return self._name

    @property
    def drops(self) -> dict[str, int]:
        """What was thrown away so far, by reason."""
        return self._drops.by_reason()

    def close(self) -> None:
        """Make `captures` return soon."""
        self._closing.set()


def block_size(rate_hz: float, asked: int | None) -> int:
    """How many samples to hand over at once."""
    return asked or max(1, round(rate_hz * SAMPLES_PER_BLOCK_SECONDS))


def open_source(name: str, settings: SourceSettings, *, subscribe: Subscribe | None = None) -> Source:
    """Make the source that a part of the configuration describes; its device is opened by `captures`.

    Args:
        name: its name in the configuration.
        settings: its part of the configuration.
        subscribe: access to the local broker, for sources of type `mqtt`.

    Raises:
        ConfigError: the settings contradict themselves, or a file they name cannot be read.
    """
    # The libraries are big (OpenCV: 150 MB on disk, a fifth of a second to import): a gateway loads those it uses.
    match settings:
        case CameraSource():
            from gateway.sources.camera import open_camera  # noqa: PLC0415

            return open_camera(name, settings)
        case ReplaySource():
            from gateway.sources.replay import open_replay  # noqa: PLC0415

            return open_replay(name, settings)
        case IioSource():
            from gateway.sources.iio import open_iio  # noqa: PLC0415

            return open_iio(name, settings)
        case ModbusSource():
            from gateway.sources.modbus import ModbusPoller  # noqa: PLC0415

            return ModbusPoller(name, settings)
        case SerialSource():
            from gateway.sources.serial_line import SerialLines  # noqa: PLC0415

            return SerialLines(name, settings)
        case MqttSource():
            from gateway.sources.mqtt_leaf import MqttLeaf  # noqa: PLC0415

            if subscribe is None:
                raise ConfigError(
                    f"source {name}: type mqtt listens on the local broker, and there is none; set `local.broker`"
                )
            return MqttLeaf(name, settings, subscribe)
        case HealthSource():
            from gateway.sources.health import MachineHealth  # noqa: PLC0415

            return MachineHealth(name, settings)
