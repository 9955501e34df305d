"""What the doctor says of accelerators, on trees of sysfs made of recordings."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import CameraSource, Config, Gateway, Pipeline, Vault
from gateway.doctor.accelerator import check_accelerator
from gateway.doctor.diagnosis import Diagnosis
from gateway.doctor.machine_view import Machine
from tests.simulators.sysfs import SysfsTree


def examined(root: Path, *, edgetpu: bool = True, library: bool = True, may_open: bool = True) -> list[Diagnosis]:
    pipeline = Pipeline(source="cam", model="m", backend="edgetpu" if edgetpu else "auto")
    settings = Config(
        gateway=Gateway(id="a"),
        sources={"cam": CameraSource(device="rtsp://cam")},
        pipelines={"p": pipeline},
        vault=Vault(level="software"),
    )
    opens: Callable[[Path], bool] = lambda _: may_open  # noqa: E731 - a knob
    loads: Callable[[str], bool] = lambda _: library  # noqa: E731 - a knob
    return list(check_accelerator(settings, Machine(root, loads, opens)))


def awake(root: Path, recording: str, device: str = "2-1") -> SysfsTree:
    """A tree on which udev's rules have done their work."""
    tree = SysfsTree(root).plug(recording)
    tree.set(device, "power/control", "on")
    return tree


def test_a_missing_edge_tpu_fails_only_where_it_is_asked_for(tmp_path: Path) -> None:
    (skipped,) = examined(tmp_path, edgetpu=False)
    assert skipped.verdict == "skipped"
    (missing,) = examined(tmp_path)
    assert missing.verdict == "failed"
    assert "litert-cpu" in missing.remedy
    SysfsTree(tmp_path).plug("usb-keyboard")
    assert examined(tmp_path) == [missing]


@pytest.mark.parametrize(
    ("recording", "ids", "firmware"),
    [("coral-usb-before-firmware", "1a6e:089a", True), ("coral-usb", "18d1:9302", False)],
)
def test_a_usb_accelerator_is_known_before_and_after_its_firmware(
    tmp_path: Path, recording: str, ids: str, *, firmware: bool
) -> None:
    awake(tmp_path, recording)
    (found,) = examined(tmp_path)
    assert (found.check, found.verdict) == ("accelerator usb:2-1", "ok")
    assert ids in found.found
    assert "5000 Mbit/s" in found.found
    assert ("firmware not loaded yet" in found.found) == firmware


def test_an_accelerator_without_its_library_is_told(tmp_path: Path) -> None:
    awake(tmp_path, "coral-usb")
    assert [each.verdict for each in examined(tmp_path, library=False, edgetpu=False)] == ["ok", "warning"]
    *_, bare = examined(tmp_path, library=False)
    assert bare.verdict == "failed"
    assert "libedgetpu.so.1" in bare.remedy


def test_a_coral_on_a_slow_port_of_a_weak_hub_is_told_each_by_itself(tmp_path: Path) -> None:
    awake(tmp_path, "coral-usb-on-weak-usb2-hub", "1-3.2")
    slow, weak = examined(tmp_path)
    assert (slow.verdict, weak.verdict) == ("warning", "warning")
    assert "480 Mbit/s (USB 2)" in slow.found
    assert "USB 3 port" in slow.remedy
    assert "under-powered" in weak.found
    assert "hub 1-3" in weak.found
    assert "498 mA" in weak.found


def test_a_hub_with_its_own_power_is_no_problem(tmp_path: Path) -> None:
    awake(tmp_path, "coral-usb-on-weak-usb2-hub", "1-3.2").set("1-3", "bmAttributes", "e0")
    assert len(examined(tmp_path)) == 1


def test_a_port_that_was_switched_off_is_told(tmp_path: Path) -> None:
    awake(tmp_path, "coral-usb").set("2-1", "port/over_current_count", "3")
    (found,) = examined(tmp_path)
    assert "3 times" in found.found
    assert "over-current" in found.remedy


def test_a_coral_that_may_be_put_to_sleep_is_told(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("coral-usb")
    (found,) = examined(tmp_path)
    assert (found.verdict, "put it to sleep" in found.found) == ("warning", True)
    assert "udev/install" in found.remedy


@pytest.mark.parametrize(
    ("recording", "device", "group", "node"),
    [("coral-usb", "2-1", "plugdev", "/dev/bus/usb/002/005"), ("coral-pcie", "0000:01:00.0", "apex", "/dev/apex_0")],
)
def test_one_that_may_not_be_opened_names_node_rules_and_group(
    tmp_path: Path, recording: str, device: str, group: str, node: str
) -> None:
    awake(tmp_path, recording, device)
    assert [each.verdict for each in examined(tmp_path)] == ["ok"]
    (closed,) = examined(tmp_path, may_open=False)
    assert closed.verdict == "failed"
    assert closed.found.startswith(node)
    assert f"usermod -aG {group}" in closed.remedy
    (tmp_path / node.lstrip("/")).unlink()
    (gone,) = examined(tmp_path)
    assert "is not there" in gone.found


def test_a_pcie_accelerator_without_its_module_is_told(tmp_path: Path) -> None:
    awake(tmp_path, "coral-pcie-without-driver", "0000:01:00.0")
    (absent,) = examined(tmp_path)
    assert (absent.verdict, "gasket-dkms" in absent.remedy) == ("failed", True)
    (tmp_path / "sys/module/apex").mkdir(parents=True)
    (idle,) = examined(tmp_path)
    assert "has not taken it" in idle.found
    (unused,) = examined(tmp_path, edgetpu=False)
    assert unused.verdict == "warning"


def test_a_pcie_accelerator_that_died_or_is_hot_is_told(tmp_path: Path) -> None:
    tree = awake(tmp_path, "coral-pcie", "0000:01:00.0")
    tree.set("apex_0", "temp", "86200")
    (hot,) = examined(tmp_path)
    assert (hot.verdict, "86 °C" in hot.found) == ("warning", True)
    tree.set("apex_0", "trip_point0_temp", "90000")
    assert [each.verdict for each in examined(tmp_path)] == ["ok"]
    tree.set("apex_0", "status", "DEAD")
    (dead,) = examined(tmp_path)
    assert (dead.verdict, "DEAD" in dead.found) == ("failed", True)
