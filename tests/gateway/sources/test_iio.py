import threading
from collections import deque
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from gateway.config import IioSource
from gateway.errors import SourceLostError
from gateway.sources.base import open_source
from gateway.sources.iio import IioBuffered, IioPolled
from tests.simulators.iio import CHANNELS, IioDevice
from tests.simulators.waiting import wait_for


def polled(device: IioDevice, /, **settings: object) -> IioPolled:
    settings = {"device": "adxl345", "channels": list(CHANNELS), "rate_hz": 100} | settings
    return IioPolled("shaft", IioSource(**settings), devices=device.devices, dev=device.dev)  # type: ignore[arg-type]


def buffered(device: IioDevice, /, **settings: object) -> IioBuffered:
    settings = {"device": "adxl345", "channels": list(CHANNELS), "rate_hz": device.rate_hz, "buffered": True} | settings
    return IioBuffered("shaft", IioSource(**settings), devices=device.devices, dev=device.dev)  # type: ignore[arg-type]


def test_polled_values_are_raw_plus_offset_times_scale(tmp_path: Path) -> None:
    block = next(polled(IioDevice(tmp_path, scale=0.5, offset=2)).captures())
    assert block.samples.tolist() == [[51, 101, 151]] * 5


def test_a_channel_that_the_driver_converts_and_one_with_a_scale_of_its_own_are_read(tmp_path: Path) -> None:
    device = IioDevice(tmp_path)
    device.set("in_accel_z_scale", "0.25")
    block = next(polled(device, channels=["in_temp", "in_accel_z"], block_samples=1).captures())
    assert block.samples.tolist() == [[42500, (300 + 2) * 0.25]]


@pytest.mark.parametrize("name", ["adxl345", "iio:device0", None])
def test_a_device_is_found_by_name_by_number_and_by_path(tmp_path: Path, name: str | None) -> None:
    device = IioDevice(tmp_path)
    assert next(polled(device, device=name or str(device.device)).captures()).samples.shape == (5, 3)


def test_a_missing_channel_is_told_with_those_there_are(tmp_path: Path) -> None:
    source = polled(IioDevice(tmp_path), channels=["in_anglvel_x"])
    with pytest.raises(SourceLostError, match=r"no channel in_anglvel_x \(it has in_accel_x, in_accel_y, in_accel_z"):
        next(source.captures())


def test_a_value_that_is_no_number_is_counted(tmp_path: Path) -> None:
    device = IioDevice(tmp_path)
    source = polled(device, block_samples=1)
    captures = source.captures()
    next(captures)
    device.set("in_accel_x_raw", "busy")

    def heal() -> None:
        wait_for(lambda: source.drops)
        device.set("in_accel_x_raw", "7")

    healer = threading.Thread(target=heal)
    healer.start()
    assert any(block.samples[0, 0] == (7 + 2) * 0.5 for block in islice(captures, 500))
    assert source.drops["not_a_number"] >= 1
    healer.join()


def test_buffered_scans_are_read_decoded_and_stamped_by_the_device(tmp_path: Path) -> None:
    device = IioDevice(tmp_path, scale=0.5, offset=2)
    device.stream()
    source = buffered(device)
    blocks = list(islice(source.captures(), 5))
    source.close()
    samples = np.concatenate([block.samples for block in blocks])
    raw = samples / 0.5 - 2
    assert np.array_equal(np.diff(raw[:, 0]), np.ones(len(raw) - 1))
    assert np.array_equal(raw[:, 1], -raw[:, 0])
    assert (raw[:, 2] == 7).all()
    steps = np.diff([block.captured_at_ns for block in blocks])
    assert (steps == 20 * round(1e9 / device.rate_hz)).all()
    assert source.drops == {}
    device.unplug()


def test_buffered_channels_come_in_the_configured_order_and_only_those(tmp_path: Path) -> None:
    device = IioDevice(tmp_path, scale=1, offset=0)
    device.stream()
    source = buffered(device, channels=["in_accel_z", "in_accel_y", "in_accel_x"])
    samples = next(source.captures()).samples
    assert (samples[:, 0] == 7).all()
    assert np.array_equal(samples[:, 1], -samples[:, 2])
    device.unplug()


def test_setting_up_the_buffer_writes_what_the_kernel_wants_and_closing_switches_it_off(tmp_path: Path) -> None:
    device = IioDevice(tmp_path)
    device.stream()
    source = buffered(device, block_samples=40)
    captures = source.captures()
    next(captures)
    assert device.get("buffer/enable") == "1"
    assert device.get("buffer/watermark") == "40"
    assert int(device.get("buffer/length")) >= 80
    assert device.get("sampling_frequency") == "400"
    assert device.get("trigger/current_trigger") == "adxl345-dev0"
    assert {device.get(f"scan_elements/{channel}_en") for channel in (*CHANNELS, "in_timestamp")} == {"1"}
    source.close()
    assert list(captures) == []
    assert device.get("buffer/enable") == "0"
    device.unplug()


def test_a_device_without_a_trigger_says_what_to_write_where(tmp_path: Path) -> None:
    device = IioDevice(tmp_path)
    (device.devices / "trigger0" / "name").write_text("hrtimer7\n")
    with pytest.raises(SourceLostError, match=r"no trigger .*\(hrtimer7\) to .*current_trigger"):
        next(buffered(device).captures())


def test_samples_that_the_kernel_dropped_are_counted(tmp_path: Path) -> None:
    device = IioDevice(tmp_path)
    device.stream(skip_every=7)
    source = buffered(device)
    deque(islice(source.captures(), 5), maxlen=0)
    assert source.drops["overrun"] >= 5
    device.unplug()


def test_a_trigger_that_does_not_fire_is_a_lost_device(tmp_path: Path) -> None:
    device = IioDevice(tmp_path)
    source = IioBuffered(
        "shaft",
        IioSource(device="adxl345", channels=list(CHANNELS), rate_hz=400, buffered=True),
        devices=device.devices,
        dev=device.dev,
        silent_seconds=0.3,
    )
    with pytest.raises(SourceLostError, match=r"no sample for 0\.3 s \(does its trigger fire"):
        next(source.captures())


def test_the_real_directory_is_looked_at_when_none_is_given() -> None:
    settings = IioSource(device="no-such-device", channels=["in_accel_x"], rate_hz=1)
    with pytest.raises(SourceLostError, match=r"/sys/bus/iio/devices/\*/name"):
        next(open_source("shaft", settings).captures())
