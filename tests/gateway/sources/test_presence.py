"""Which sources read a device of this machine, and whether it is there."""

from pathlib import Path

import pytest

from gateway.config import CameraSource, HealthSource, IioSource, ModbusRegister, ModbusSource, SerialSource, Source
from gateway.sources.presence import find_iio, local_device
from tests.simulators.iio import IioDevice


@pytest.mark.parametrize(
    "settings",
    [
        CameraSource(device="rtsp://cam"),
        CameraSource(device="clip.mp4"),
        ModbusSource(device="tcp://host:502", registers=[ModbusRegister(address=0)]),
        HealthSource(),
    ],
)
def test_what_is_no_device_of_this_machine_has_no_presence(settings: Source) -> None:
    assert local_device(settings) is None


def test_a_serial_line_is_there_when_its_node_is(tmp_path: Path) -> None:
    node = tmp_path / "serial"
    modbus = ModbusSource(device=f"serial://{node}?baudrate=9600", registers=[ModbusRegister(address=0)])
    for settings in (SerialSource(device=node, rate_hz=1.0), modbus):
        device = local_device(settings)
        assert device is not None
        assert (device.path, device.there()) == (str(node), False)
        node.touch()
        assert device.there()
        node.unlink()


def test_a_camera_is_there_when_its_node_is() -> None:
    device, gone = local_device(CameraSource(device="/dev/null")), local_device(CameraSource(device="/dev/nothing"))
    assert device is not None
    assert gone is not None
    assert (device.there(), gone.there()) == (True, False)


def test_an_iio_device_is_found_by_name_label_directory_and_lasting_name(tmp_path: Path) -> None:
    device = IioDevice(tmp_path)
    device.set("label", "motor")
    link = tmp_path / "sluice" / "iio-adxl345-1-0053"
    link.parent.mkdir()
    link.symlink_to(device.file)
    for wanted in ("adxl345", "iio:device0", "motor", str(device.device), str(link), str(device.file)):
        assert find_iio(device.devices, wanted) == device.device, wanted
    for absent in ("bme280", "iio:device7", str(tmp_path / "sluice" / "iio-other"), "/dev/null"):
        assert find_iio(device.devices, absent) is None, absent


def test_an_iio_device_that_is_not_there_has_no_presence() -> None:
    device = local_device(IioSource(device="not-a-sensor", channels=["in_accel_x"], rate_hz=1.0))
    assert device is not None
    assert not device.there()
