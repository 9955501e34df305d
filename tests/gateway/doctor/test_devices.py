"""What the doctor says of cameras, serial lines, IIO sensors, the TPM and the udev rules."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import (
    CameraSource,
    Config,
    Gateway,
    IioSource,
    ModbusRegister,
    ModbusSource,
    Pipeline,
    SerialSource,
    Source,
    Vault,
)
from gateway.doctor.devices import Machine, check_cameras, check_iio, check_rules, check_serial, check_tpm
from tests.simulators.sysfs import SysfsTree

SOFTWARE = Vault(level="software")


def machine(root: Path, *nodes: str, libraries: bool = True, may_open: bool = True) -> Machine:
    for node in nodes:
        (root / node).parent.mkdir(parents=True, exist_ok=True)
        (root / node).touch()
    opens: Callable[[Path], bool] = lambda _: may_open  # noqa: E731 - a knob
    loads: Callable[[str], bool] = lambda _: libraries  # noqa: E731 - a knob
    return Machine(root, loads, opens)


def config(*, camera: str = "rtsp://cam", serial: str = "") -> Config:
    sources: dict[str, CameraSource | SerialSource] = {"cam": CameraSource(device=camera)}
    if serial:
        sources["line"] = SerialSource(device=Path(serial), rate_hz=1)
    pipeline = Pipeline(source="cam", model="m")
    return Config(gateway=Gateway(id="a"), sources=dict(sources), pipelines={"p": pipeline}, vault=SOFTWARE)


def test_a_camera_is_looked_for_by_its_name(tmp_path: Path) -> None:
    wanted = config(camera="/dev/video2")
    (missing,) = check_cameras(wanted, machine(tmp_path, "dev/video0"))
    assert missing.verdict == "failed"
    assert "there is /dev/video0" in missing.remedy
    (there,) = check_cameras(wanted, machine(tmp_path, "dev/video2"))
    assert there.verdict == "ok"
    (closed,) = check_cameras(wanted, machine(tmp_path, "dev/video2", may_open=False))
    assert closed.verdict == "failed"
    assert "usermod -aG video" in closed.remedy


def test_cameras_that_are_not_used_are_named(tmp_path: Path) -> None:
    nothing = Config(gateway=Gateway(id="a"), sources={}, pipelines={}, vault=SOFTWARE)
    (found,) = check_cameras(nothing, machine(tmp_path, "dev/video0"))
    assert found.verdict == "skipped"
    assert "/dev/video0" in found.found


def test_a_serial_line_is_looked_for(tmp_path: Path) -> None:
    (missing,) = check_serial(config(serial="/dev/ttyUSB0"), machine(tmp_path))
    assert missing.verdict == "failed"
    (closed,) = check_serial(config(serial="/dev/ttyUSB0"), machine(tmp_path, "dev/ttyUSB0", may_open=False))
    assert "dialout" in closed.remedy
    assert list(check_serial(config(), machine(tmp_path))) == []


def test_a_tpm_is_looked_for(tmp_path: Path) -> None:
    assert check_tpm(machine(tmp_path)).verdict == "skipped"
    assert check_tpm(machine(tmp_path, "dev/tpm0")).verdict == "warning"
    assert check_tpm(machine(tmp_path, "dev/tpmrm0")).verdict == "ok"
    assert check_tpm(machine(tmp_path, "dev/tpmrm0", libraries=False)).remedy.startswith("install")
    assert "tss" in check_tpm(machine(tmp_path, "dev/tpmrm0", may_open=False)).remedy


def only(name: str, source: Source) -> Config:
    return Config(gateway=Gateway(id="a"), sources={name: source}, pipelines={}, vault=SOFTWARE)


def linked(root: Path, name: str, node: str) -> str:
    """Make a name in /dev/sluice, as udev does."""
    (root / "dev" / "sluice").mkdir(parents=True, exist_ok=True)
    (root / "dev" / "sluice" / name).symlink_to(f"../{node}")
    return f"/dev/sluice/{name}"


def holds(root: Path, number: int, node: str, words: str) -> None:
    """Let a process have a node open."""
    process = root / "proc" / str(number)
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "5").symlink_to(root / "dev" / node)
    (process / "cmdline").write_bytes(words.replace(" ", "\0").encode() + b"\0")


def test_a_camera_that_is_named_after_its_number_is_told_its_lasting_name(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("camera-uvc")
    lasting = linked(tmp_path, "camera-pci-0000:00:14.0-usb-0:2:1.0", "video0")
    (by_number,) = check_cameras(config(camera="/dev/video0"), machine(tmp_path))
    assert by_number.verdict == "ok"
    assert lasting in by_number.found
    (by_port,) = check_cameras(config(camera=lasting), machine(tmp_path))
    assert by_port.verdict == "ok"
    assert "stays the same" not in by_port.found


def test_the_node_for_metadata_is_no_camera(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("camera-uvc")
    lasting = linked(tmp_path, "camera-pci-0000:00:14.0-usb-0:2:1.0", "video0")
    (found,) = check_cameras(config(camera="/dev/video1"), machine(tmp_path))
    assert found.verdict == "failed"
    assert lasting in found.remedy


def test_a_camera_that_another_program_has_is_told_with_its_name(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("camera-uvc")
    holds(tmp_path, 77, "video0", "/opt/sluice/bin/gateway run")
    assert [found.verdict for found in check_cameras(config(camera="/dev/video0"), machine(tmp_path))] == ["ok"]
    holds(tmp_path, 4711, "video0", "ffmpeg -i /dev/video0")
    (found,) = check_cameras(config(camera="/dev/video0"), machine(tmp_path))
    assert found.verdict == "warning"
    assert "ffmpeg -i /dev/video0 (process 4711)" in found.found


def test_a_camera_on_a_port_that_is_too_slow_is_told(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("camera-uvc").set("1-2", "speed", "12")
    (found,) = check_cameras(config(camera="/dev/video0"), machine(tmp_path))
    assert found.verdict == "warning"
    assert "USB 1" in found.found


def test_a_usb_camera_without_a_driver_is_told_although_it_has_no_node(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("camera-uvc")
    (tmp_path / "sys/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/driver").unlink()
    found, *_ = check_cameras(config(), machine(tmp_path))
    assert found.verdict == "warning"
    assert "port 1-2" in found.found
    assert "modprobe uvcvideo" in found.remedy


def test_a_lasting_name_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("camera-uvc")
    lasting = linked(tmp_path, "camera-pci-0000:00:14.0-usb-0:2:1.0", "video0")
    (found,) = check_cameras(config(camera="/dev/sluice/camera-pci-0000:00:14.0-usb-0:9:1.0"), machine(tmp_path))
    assert found.verdict == "failed"
    assert lasting in found.remedy


@pytest.mark.parametrize(
    ("recording", "interface", "driver"),
    [
        ("serial-ftdi", "1-4/1-4:1.0", "ftdi_sio"),
        ("serial-ch340", "1-5/1-5:1.0", "ch341"),
        ("serial-acm", "1-6/1-6:1.0", "cdc_acm"),
    ],
)
def test_an_adapter_without_a_driver_is_told_with_the_name_of_the_driver(
    tmp_path: Path, recording: str, interface: str, driver: str
) -> None:
    SysfsTree(tmp_path).plug(recording)
    assert list(check_serial(config(), machine(tmp_path))) == []
    (tmp_path / "sys/devices/pci0000:00/0000:00:14.0/usb1" / interface / "driver").unlink()
    found, *_ = check_serial(config(), machine(tmp_path))
    assert f"modprobe {driver}" in found.remedy


def test_the_line_of_the_console_is_no_sensor(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("serial-uart")
    (console,) = check_serial(config(serial="/dev/ttymxc0"), machine(tmp_path))
    assert (console.verdict, "console" in console.found) == ("failed", True)
    (free,) = check_serial(config(serial="/dev/ttymxc2"), machine(tmp_path))
    assert free.verdict == "ok"


def test_a_serial_line_of_modbus_is_looked_at_too(tmp_path: Path) -> None:
    pump = ModbusSource(device="serial:///dev/ttyUSB0?baudrate=9600", registers=[ModbusRegister(address=1)])
    (missing,) = check_serial(only("pump", pump), machine(tmp_path))
    assert (missing.check, missing.verdict) == ("modbus pump", "failed")
    SysfsTree(tmp_path).plug("serial-ftdi")
    holds(tmp_path, 12, "ttyUSB0", "minicom -D /dev/ttyUSB0")
    (busy,) = check_serial(only("pump", pump), machine(tmp_path))
    assert "minicom" in busy.found


def accelerometer(*, buffered: bool = False, device: str = "adxl345") -> Config:
    return only("motor", IioSource(device=device, channels=["in_accel_x"], rate_hz=100.0, buffered=buffered))


def test_an_iio_sensor_is_looked_for(tmp_path: Path) -> None:
    assert list(check_iio(config(), machine(tmp_path))) == []
    (missing,) = check_iio(accelerometer(), machine(tmp_path))
    assert (missing.verdict, "i2cdetect" in missing.remedy) == ("failed", True)
    SysfsTree(tmp_path).plug("iio-adxl345")
    (polled,) = check_iio(accelerometer(), machine(tmp_path))
    assert polled.verdict == "ok"
    (other,) = check_iio(accelerometer(device="bme280"), machine(tmp_path))
    assert "there is adxl345" in other.remedy
    lasting = linked(tmp_path, "iio-adxl345-1-0053", "iio:device0")
    assert [found.verdict for found in check_iio(accelerometer(device=lasting), machine(tmp_path))] == ["ok"]


def test_a_buffered_iio_sensor_needs_rights_and_a_trigger(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path).plug("iio-adxl345")
    wanted = accelerometer(buffered=True)
    assert [found.verdict for found in check_iio(wanted, machine(tmp_path))] == ["ok"]
    (closed,) = check_iio(wanted, machine(tmp_path, may_open=False))
    assert (closed.verdict, "udev/install" in closed.remedy) == ("failed", True)
    tree.set("trigger0", "name", "sysfstrig1")
    (idle,) = check_iio(wanted, machine(tmp_path))
    assert (idle.verdict, "sysfstrig1" in idle.remedy) == ("failed", True)
    tree.set("iio:device0", "trigger/current_trigger", "sysfstrig1")
    assert [found.verdict for found in check_iio(wanted, machine(tmp_path))] == ["ok"]


def test_a_tpm_that_the_firmware_lists_and_no_driver_has_is_told(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("tpm")
    assert check_tpm(machine(tmp_path)).verdict == "ok"
    for node in ("tpm0", "tpmrm0"):
        (tmp_path / "dev" / node).unlink()
    listed = check_tpm(machine(tmp_path))
    assert (listed.verdict, "modprobe tpm_crb" in listed.remedy) == ("warning", True)


def test_a_tpm_of_the_old_kind_is_told(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("tpm").set("tpm0", "tpm_version_major", "1")
    (tmp_path / "dev" / "tpmrm0").unlink()
    assert "TPM 1.2" in check_tpm(machine(tmp_path)).found


def test_missing_rules_matter_only_where_a_device_is_used(tmp_path: Path) -> None:
    bare = machine(tmp_path)
    assert check_rules(config(), bare).verdict == "skipped"
    assert check_rules(config(camera="/dev/video0"), bare).verdict == "warning"
    SysfsTree(tmp_path).plug("coral-usb")
    assert check_rules(config(), bare).verdict == "warning"
    rules = tmp_path / "etc/udev/rules.d"
    rules.mkdir(parents=True)
    (rules / "60-sluice-camera.rules").touch()
    assert check_rules(config(), bare).verdict == "ok"
