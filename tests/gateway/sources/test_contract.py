"""What every kind of source promises, asked of each of them."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gateway.config import (
    CameraSource,
    HealthSource,
    IioSource,
    ModbusRegister,
    ModbusSource,
    MqttSource,
    ReplaySource,
    SerialSource,
)
from gateway.errors import SourceLostError
from gateway.sources.base import OnMessage, Source, open_source
from gateway.sources.health import MachineHealth
from gateway.sources.iio import IioBuffered, IioPolled
from gateway.values import Capture, Frame
from tests.simulators.camera import MjpegCamera
from tests.simulators.camera_rtsp import RtspCamera
from tests.simulators.clips import write_video
from tests.simulators.iio import CHANNELS, IioDevice
from tests.simulators.modbus import ModbusDevice
from tests.simulators.serial_line import NullModem, SerialDevice

NAME = "dock"


@dataclass
class Rig:
    """A source with the device it reads."""

    make: Callable[[], Source]
    lose: Callable[[], object]
    device: str  # must be in the message when it is lost
    undo: ExitStack
    recording: bool = False


class Leaves:
    """A local broker with a leaf sensor on it that publishes until it is told to stop."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.subscribed = 0

    def stop(self) -> None:
        self._stop.set()

    def subscribe(self, topic: str, on_message: OnMessage) -> Callable[[], None]:
        self.subscribed += 1
        unsubscribed = threading.Event()

        def run() -> None:
            number = 0
            while not self._stop.wait(0.02) and not unsubscribed.is_set():
                number += 1
                on_message(topic, json.dumps([number, -number]).encode())

        threading.Thread(target=run, daemon=True).start()

        def end() -> None:
            self.subscribed -= 1
            unsubscribed.set()

        return end


def mjpeg(_path: Path) -> Rig:
    camera = MjpegCamera()
    undo = ExitStack()
    undo.callback(camera.unplug)
    settings = CameraSource(device=camera.url, timeout_seconds=1.0)
    return Rig(lambda: open_source(NAME, settings), camera.unplug, camera.url, undo)


def rtsp(_path: Path) -> Rig:
    camera = RtspCamera(fps=25)
    undo = ExitStack()
    undo.callback(camera.unplug)
    settings = CameraSource(device=camera.url, timeout_seconds=3.0)
    return Rig(lambda: open_source(NAME, settings), camera.unplug, camera.url, undo)


def video_camera(path: Path) -> Rig:
    file = write_video(path / "clip.mp4", frames=50)
    settings = CameraSource(device=str(file))
    return Rig(lambda: open_source(NAME, settings), file.unlink, str(file), ExitStack(), recording=True)


def video_replay(path: Path) -> Rig:
    file = write_video(path / "clip.avi", frames=25)
    settings = ReplaySource(file=file, loop=True, speed=4)
    return Rig(lambda: open_source(NAME, settings), file.unlink, str(file), ExitStack(), recording=True)


def csv(path: Path) -> Rig:
    file = path / "samples.csv"
    file.write_text("time,x,y\n" + "".join(f"{at / 100},{at},{-at}\n" for at in range(200)))
    settings = ReplaySource(file=file, loop=True)
    return Rig(lambda: open_source(NAME, settings), file.unlink, str(file), ExitStack(), recording=True)


def npz(path: Path) -> Rig:
    file = path / "samples.npz"
    np.savez(file, windows=np.arange(4 * 50 * 3, dtype=np.int16).reshape(4, 50, 3))
    settings = ReplaySource(file=file, loop=True, rate_hz=500)
    return Rig(lambda: open_source(NAME, settings), file.unlink, str(file), ExitStack(), recording=True)


def iio_polled(path: Path) -> Rig:
    device = IioDevice(path)
    settings = IioSource(device="adxl345", channels=list(CHANNELS), rate_hz=50)
    return Rig(
        lambda: IioPolled(NAME, settings, devices=device.devices, dev=device.dev), device.unplug, "adxl345", ExitStack()
    )


def iio_buffered(path: Path) -> Rig:
    device = IioDevice(path)
    device.stream()
    undo = ExitStack()
    undo.callback(device.unplug)
    settings = IioSource(device="adxl345", channels=list(CHANNELS), rate_hz=device.rate_hz, buffered=True)
    return Rig(
        lambda: IioBuffered(NAME, settings, devices=device.devices, dev=device.dev), device.unplug, "adxl345", undo
    )


def modbus_tcp(_path: Path) -> Rig:
    device = ModbusDevice()
    undo = ExitStack()
    undo.callback(device.close)
    address = f"tcp://127.0.0.1:{device.port}"
    settings = ModbusSource(device=address, registers=[ModbusRegister(address=0)], rate_hz=50, timeout_seconds=0.5)
    return Rig(lambda: open_source(NAME, settings), device.unplug, address, undo)


def modbus_rtu(_path: Path) -> Rig:
    line = NullModem()
    device = ModbusDevice(serial=line.paths[0])
    undo = ExitStack()
    undo.callback(line.unplug)
    undo.callback(device.close)
    address = f"serial://{line.paths[1]}?baudrate=19200"
    settings = ModbusSource(device=address, registers=[ModbusRegister(address=0)], rate_hz=20, timeout_seconds=0.5)
    return Rig(lambda: open_source(NAME, settings), device.unplug, address, undo)


def serial_line(_path: Path) -> Rig:
    device = SerialDevice()
    device.stream(b"1.5;2.5\r\n")
    undo = ExitStack()
    undo.callback(device.unplug)
    settings = SerialSource(device=device.path, channels=2, rate_hz=50, silent_after_seconds=1)
    return Rig(lambda: open_source(NAME, settings), device.unplug, str(device.path), undo)


def mqtt(_path: Path) -> Rig:
    leaves = Leaves()
    undo = ExitStack()
    undo.callback(leaves.stop)
    settings = MqttSource(topic="leaf/boiler", channels=2, rate_hz=50, silent_after_seconds=0.5)
    return Rig(lambda: open_source(NAME, settings, subscribe=leaves.subscribe), leaves.stop, "leaf/boiler", undo)


def health(path: Path) -> Rig:
    proc = path / "proc"
    proc.mkdir()
    (proc / "loadavg").write_text("0.50 0.40 0.30 1/100 4242\n")
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 250 kB\n")
    settings = HealthSource(rate_hz=20)
    return Rig(lambda: MachineHealth(NAME, settings, proc=proc), (proc / "loadavg").unlink, str(proc), ExitStack())


@pytest.fixture(
    params=[
        *(mjpeg, rtsp, video_camera, video_replay, csv, npz, iio_polled, iio_buffered),
        *(modbus_tcp, modbus_rtu, serial_line, mqtt, health),
    ],
    ids=lambda make: str(make.__name__),
)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = request.param(tmp_path)
    with made.undo:
        yield made


def take(source: Source, count: int) -> list[Capture]:
    taken = []
    captures = source.captures()
    try:
        for capture in captures:
            taken.append(capture)
            if len(taken) == count:
                break
    finally:
        source.close()
        captures.close()  # type: ignore[attr-defined]  # all sources are generators
    return taken


def test_captures_are_stamped_and_shaped_and_in_order(rig: Rig) -> None:
    begin_ns, begin_monotonic_ns = time.time_ns(), time.monotonic_ns()
    captures = take(rig.make(), 6)
    assert len(captures) == 6
    for before, after in pairwise(captures):
        assert after.captured_at_ns >= before.captured_at_ns
        assert after.received_ns >= before.received_ns
        if isinstance(before, Frame):
            assert isinstance(after, Frame)
            assert after.sequence > before.sequence
            assert after.captured_at_ns > before.captured_at_ns
    for capture in captures:
        assert capture.source == NAME
        assert begin_monotonic_ns <= capture.received_ns <= time.monotonic_ns()
        assert begin_ns - 100_000_000 <= capture.captured_at_ns <= time.time_ns() + 100_000_000
        if isinstance(capture, Frame):
            assert capture.image.dtype == np.uint8
            assert capture.image.shape == (240, 320, 3)
        else:
            assert capture.samples.dtype == np.float32
            assert capture.samples.ndim == 2
            assert len(capture.samples) > 0
            assert np.isfinite(capture.samples).all()
            assert capture.rate_hz > 0


def test_close_ends_the_captures_within_two_seconds(rig: Rig) -> None:
    source = rig.make()
    streaming = threading.Event()

    def consume() -> None:
        for _ in source.captures():
            streaming.set()

    thread = threading.Thread(target=consume)
    thread.start()
    assert streaming.wait(10)
    begin = time.monotonic()
    source.close()
    assert time.monotonic() - begin < 0.2
    thread.join(2)
    assert not thread.is_alive()
    source.close()


def test_a_source_closed_before_it_was_used_yields_nothing(rig: Rig) -> None:
    source = rig.make()
    source.close()
    begin = time.monotonic()
    assert list(source.captures()) == []
    assert time.monotonic() - begin < 2


def test_a_device_that_goes_away_is_lost_with_its_name_and_a_remedy(rig: Rig) -> None:
    if rig.recording:
        pytest.skip("a recording that was opened is played to its end")
    source = rig.make()
    captures = source.captures()
    next(captures)
    rig.lose()
    begin = time.monotonic()
    with pytest.raises(SourceLostError) as caught:
        deque(captures, maxlen=0)
    assert time.monotonic() - begin < 10
    source.close()
    assert rig.device in str(caught.value)
    assert "check" in str(caught.value)


def test_a_device_that_is_not_there_is_lost_with_its_name_and_a_remedy(rig: Rig) -> None:
    rig.lose()
    with pytest.raises(SourceLostError) as caught:
        next(rig.make().captures())
    assert rig.device in str(caught.value)
    assert "check" in str(caught.value)
