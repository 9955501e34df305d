"""What the doctor says of accelerators, cameras, serial lines and the TPM."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import CameraSource, Config, Gateway, Pipeline, SerialSource, Vault
from gateway.doctor.devices import Machine, check_accelerator, check_cameras, check_serial, check_tpm

SOFTWARE = Vault(level="software")


def machine(root: Path, *nodes: str, libraries: bool = True, may_open: bool = True) -> Machine:
    for node in nodes:
        (root / node).parent.mkdir(parents=True, exist_ok=True)
        (root / node).touch()
    opens: Callable[[Path], bool] = lambda _: may_open  # noqa: E731 - a knob
    loads: Callable[[str], bool] = lambda _: libraries  # noqa: E731 - a knob
    return Machine(root, loads, opens)


def coral(root: Path, vendor: str = "1a6e", product: str = "089a") -> None:
    device = root / "sys" / "bus" / "usb" / "devices" / "2-1"
    device.mkdir(parents=True)
    (device / "idVendor").write_text(vendor + "\n")
    (device / "idProduct").write_text(product + "\n")


def config(*, edgetpu: bool = False, camera: str = "rtsp://cam", serial: str = "") -> Config:
    sources: dict[str, CameraSource | SerialSource] = {"cam": CameraSource(device=camera)}
    if serial:
        sources["line"] = SerialSource(device=Path(serial), rate_hz=1)
    pipeline = Pipeline(source="cam", model="m", backend="edgetpu" if edgetpu else "auto")
    return Config(gateway=Gateway(id="a"), sources=dict(sources), pipelines={"p": pipeline}, vault=SOFTWARE)


def test_a_missing_edge_tpu_fails_only_where_it_is_asked_for(tmp_path: Path) -> None:
    assert check_accelerator(config(), machine(tmp_path)).verdict == "skipped"
    missing = check_accelerator(config(edgetpu=True), machine(tmp_path))
    assert missing.verdict == "failed"
    assert "litert-cpu" in missing.remedy


@pytest.mark.parametrize("ids", [("1a6e", "089a"), ("18d1", "9302")])
def test_a_usb_accelerator_is_known_before_and_after_its_firmware(tmp_path: Path, ids: tuple[str, str]) -> None:
    coral(tmp_path, *ids)
    found = check_accelerator(config(edgetpu=True), machine(tmp_path))
    assert found.verdict == "ok"
    assert ":".join(ids) in found.found


def test_another_usb_device_is_no_accelerator(tmp_path: Path) -> None:
    coral(tmp_path, "046d", "0825")
    assert check_accelerator(config(), machine(tmp_path)).verdict == "skipped"


def test_an_accelerator_without_its_library_is_told(tmp_path: Path) -> None:
    coral(tmp_path)
    bare = machine(tmp_path, libraries=False)
    assert check_accelerator(config(), bare).verdict == "warning"
    assert check_accelerator(config(edgetpu=True), bare).verdict == "failed"
    assert "libedgetpu.so.1" in check_accelerator(config(), bare).remedy


def test_a_pcie_accelerator_that_may_not_be_opened_names_the_group(tmp_path: Path) -> None:
    found = check_accelerator(config(), machine(tmp_path, "dev/apex_0", may_open=False))
    assert found.verdict == "failed"
    assert "apex" in found.remedy
    assert check_accelerator(config(), machine(tmp_path, "dev/apex_0")).verdict == "ok"


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
