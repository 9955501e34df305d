"""Linux Industrial I/O sensors: polled through sysfs, or by the triggered buffer for high rates.

Source: the kernel's `Documentation/ABI/testing/sysfs-bus-iio` and `Documentation/iio/iio_devbuf.rst`. A value is
(raw + offset) * scale.
"""

import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.config import IioSource
from gateway.errors import ConfigError, SourceLostError
from gateway.sources.base import ClosableSource, Source, WallClock, block_size
from gateway.sources.iio_layout import TIMESTAMP, Layout, layout_of, parse_type
from gateway.sources.pacing import SECOND_NS, polled_blocks
from gateway.sources.presence import IIO_DEVICES, find_iio
from gateway.values import SampleBlock

DEV = Path("/dev")
SILENT_SECONDS = 5.0
_POLL_MS = 200
_KERNEL_BUFFER_BLOCKS = 8
_CLOCK_AGREES_NS = 5 * SECOND_NS
"""Time stamps that are further from UTC come from another clock (`current_timestamp_clock`)."""


@dataclass(frozen=True, slots=True)
class _Channel:
    name: str
    scale: float
    offset: float


class _IioDevice(ClosableSource):
    """A device in sysfs."""

    def __init__(
        self,
        name: str,
        settings: IioSource,
        *,
        devices: Path = IIO_DEVICES,
        dev: Path = DEV,
        silent_seconds: float = SILENT_SECONDS,
        wall_clock: WallClock = time.time_ns,
    ) -> None:
        """`devices`, `dev`: where devices are, in sysfs and as files; `silent_seconds`: a buffer's patience."""
        super().__init__(name)
        self._settings = settings
        self._devices = devices
        self._dev = dev
        self._silent_seconds = silent_seconds
        self._wall_clock = wall_clock
        self._block = block_size(settings.rate_hz, settings.block_samples)

    def _find(self) -> Path:
        device = find_iio(self._devices, self._settings.device)
        if device is None:
            raise self._lost("is not there")
        return device

    def _lost(self, what: str) -> SourceLostError:
        return SourceLostError(
            f"source {self.name}: IIO device {self._settings.device} {what}; "
            f"`grep . {self._devices}/*/name` shows those that are there; check the wiring and the driver (`dmesg`)"
        )

    def _channel(self, device: Path, name: str) -> _Channel:
        """Read the scale and offset of a channel: its own, or that of all channels of its type."""
        shared = name.rpartition("_")[0]

        def value(what: str, default: str) -> float:
            text = _read(device / f"{name}_{what}", "") or _read(device / f"{shared}_{what}", default)
            try:
                return float(text)
            except ValueError as error:
                raise ConfigError(f"source {self.name}: {device}/{name}_{what} holds {text!r}, no number") from error

        return _Channel(name, value("scale", "1"), value("offset", "0"))


class IioPolled(_IioDevice):
    """Reads `<channel>_raw`, or `<channel>_input` where the driver converts, of each channel, at a rate."""

    def captures(self) -> Iterator[SampleBlock]:
        """Yield blocks (n, channels), in the unit of the kernel (m/s², °C/1000, …)."""
        device = self._find()
        channels = [self._channel(device, name) for name in self._settings.channels]
        scale = np.array([channel.scale for channel in channels])
        offset = np.array([channel.offset for channel in channels])
        with ExitStack() as files:
            opened: list[int] = []
            for at, channel in enumerate(channels):
                file = device / f"{channel.name}_raw"
                if not file.exists():
                    file = device / f"{channel.name}_input"
                    scale[at], offset[at] = 1.0, 0.0
                opened.append(self._opened(file, channel.name))
                files.callback(os.close, opened[-1])

            def read(row: NDArray[np.float32]) -> bool:
                try:
                    texts = [os.pread(file, 32, 0) for file in opened]
                    if not all(texts):
                        raise self._lost("stopped answering")
                    values = [float(text) for text in texts]
                except ValueError:
                    self._drops.count("not_a_number")
                    return False
                except BlockingIOError:
                    self._drops.count("busy")  # a conversion is under way
                    return False
                except OSError as error:
                    raise self._lost(f"stopped answering ({error.strerror})") from error
                row[:] = (np.array(values) + offset) * scale
                return True

            yield from polled_blocks(
                self.name,
                read,
                rate_hz=self._settings.rate_hz,
                shape=(self._block, len(channels)),
                closing=self._closing,
                drops=self._drops,
                wall_clock=self._wall_clock,
            )

    def _opened(self, file: Path, channel: str) -> int:
        try:
            return os.open(file, os.O_RDONLY)
        except FileNotFoundError as error:
            there = sorted(path.name.removesuffix("_raw") for path in file.parent.glob("in_*_raw"))
            raise self._lost(f"has no channel {channel} (it has {', '.join(there) or 'none'})") from error
        except OSError as error:
            raise self._lost(f"cannot be read: {file}: {error.strerror}") from error


class IioBuffered(_IioDevice):
    """Reads whole scans from `/dev/iio:deviceN` as the hardware takes them."""

    def captures(self) -> Iterator[SampleBlock]:
        """Yield blocks (n, channels), in the unit of the kernel (m/s², …)."""
        device = self._find()
        channels = [self._channel(device, name) for name in self._settings.channels]
        try:
            layout = self._set_up(device)
        except OSError as error:
            raise self._lost(f"refuses to be set up: {error.filename}: {error.strerror}") from error
        try:
            yield from self._scans(self._dev / device.name, layout, channels)
        finally:
            with suppress(OSError):  # gone devices cannot be switched off
                _write(device / "buffer" / "enable", "0")

    def _set_up(self, device: Path) -> Layout:
        """Choose the channels, the rate and the trigger, and switch the buffer on."""
        elements_dir = device / "scan_elements"
        _write(device / "buffer" / "enable", "0")
        elements = []
        for enable in sorted(elements_dir.glob("*_en")):
            name = enable.name.removesuffix("_en")
            wanted = name in self._settings.channels or name == TIMESTAMP
            _write(enable, "1" if wanted else "0")
            if wanted:
                kind = _read(elements_dir / f"{name}_type", "")
                elements.append(parse_type(name, int(_read(elements_dir / f"{name}_index", "0")), kind))
        missing = set(self._settings.channels) - {element.name for element in elements}
        if missing:
            raise self._lost(f"cannot buffer {', '.join(sorted(missing))}")
        self._set_trigger(device)
        rate = device / "sampling_frequency"
        if rate.exists():
            # A device has a few rates of its own; it takes the nearest, or refuses and keeps the one it has.
            with suppress(OSError):
                _write(rate, f"{self._settings.rate_hz:g}")
        _write(device / "buffer" / "length", str(self._block * _KERNEL_BUFFER_BLOCKS))
        watermark = device / "buffer" / "watermark"
        if watermark.exists():
            _write(watermark, str(self._block))
        _write(device / "buffer" / "enable", "1")
        return layout_of(elements)

    def _set_trigger(self, device: Path) -> None:
        current = device / "trigger" / "current_trigger"
        if not current.exists() or _read(current, ""):
            return
        # Drivers name a device's own data-ready trigger `<name>-dev<N>`.
        own = f"{_read(device / 'name', '')}-dev{device.name.removeprefix('iio:device')}"
        names = [_read(trigger, "") for trigger in sorted(self._devices.glob("trigger*/name"))]
        if own not in names:
            raise SourceLostError(
                f"source {self.name}: no trigger starts the conversions of {self._settings.device}; "
                f"write the name of one ({', '.join(names) or 'none is there: load iio-trig-hrtimer'}) to {current}"
            )
        _write(current, own)

    def _scans(self, file: Path, layout: Layout, channels: list[_Channel]) -> Iterator[SampleBlock]:
        try:
            handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise self._lost(f"cannot be read: {file}: {error.strerror} (a udev rule gives the right)") from error
        try:
            pending = bytearray()
            wanted = self._block * layout.dtype.itemsize
            while self._wait(handle):
                try:
                    got = os.read(handle, wanted - len(pending))
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise self._lost(f"stopped answering ({error.strerror})") from error
                if not got:
                    raise self._lost("ended its stream")
                pending += got
                if len(pending) == wanted:
                    yield self._decoded(np.frombuffer(bytes(pending), layout.dtype), layout, channels)
                    pending.clear()
        finally:
            os.close(handle)

    def _wait(self, handle: int) -> bool:
        """Wait for samples. False when the source is being closed."""
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        patience_seconds = max(self._silent_seconds, 2 * self._block / self._settings.rate_hz)
        silent_at = time.monotonic() + patience_seconds
        while not self._closing.is_set():
            if poller.poll(_POLL_MS):
                return True
            if time.monotonic() > silent_at:
                raise self._lost(f"gave no sample for {patience_seconds:g} s (does its trigger fire?)")
        return False

    def _decoded(self, scans: NDArray[np.void], layout: Layout, channels: list[_Channel]) -> SampleBlock:
        now_ns, received_ns = self._wall_clock(), time.monotonic_ns()
        samples = np.empty((len(scans), len(channels)), np.float32)
        for at, channel in enumerate(channels):
            samples[:, at] = (layout.raw(scans, channel.name) + channel.offset) * channel.scale
        period_ns = SECOND_NS / self._settings.rate_hz
        first_ns = now_ns - round((len(scans) - 1) * period_ns)
        if TIMESTAMP in (layout.dtype.names or ()):
            stamps = layout.raw(scans, TIMESTAMP)
            if abs(int(stamps[-1]) - now_ns) < _CLOCK_AGREES_NS:
                first_ns = int(stamps[0])
            gaps = np.diff(stamps) / period_ns
            # The kernel's queue overflows silently; only the time stamps show it.
            self._drops.count("overrun", int(np.rint(gaps[gaps > 1.5] - 1).sum()), detail="gaps in the time stamps")
        return SampleBlock(self.name, first_ns, received_ns, self._settings.rate_hz, samples)


def open_iio(name: str, settings: IioSource) -> Source:
    """Make the source for an IIO device."""
    return IioBuffered(name, settings) if settings.buffered else IioPolled(name, settings)


def _read(file: Path, default: str) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return default


def _write(file: Path, text: str) -> None:
    file.write_text(text)
