"""Accelerators in a tree of sysfs, made of recordings."""

from pathlib import Path

from gateway.devices.accelerators import accelerators
from gateway.devices.sysfs import SysDevice
from tests.simulators.sysfs import SysfsTree


def test_a_usb_accelerator_keeps_its_place_when_its_firmware_is_loaded(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path).plug("coral-usb-before-firmware")
    (before,) = accelerators(tmp_path)
    tree.unplug("coral-usb-before-firmware")
    assert accelerators(tmp_path) == []
    tree.plug("coral-usb")
    (after,) = accelerators(tmp_path)
    assert (before.place, after.place) == ("usb:2-1", "usb:2-1")
    assert (before.ready, after.ready) == (False, True)
    assert after.node == tmp_path / "dev/bus/usb/002/005"


def test_a_pcie_accelerator_is_ready_when_its_driver_has_made_a_node(tmp_path: Path) -> None:
    SysfsTree(tmp_path / "with").plug("coral-pcie")
    SysfsTree(tmp_path / "without").plug("coral-pcie-without-driver")
    (ready,) = accelerators(tmp_path / "with")
    (bare,) = accelerators(tmp_path / "without")
    assert (ready.place, ready.ready, ready.node) == ("pci:0000:01:00.0", True, tmp_path / "with/dev/apex_0")
    assert (bare.place, bare.ready, bare.node) == ("pci:0000:01:00.0", False, None)
    assert (ready.device.driver, bare.device.driver) == ("apex", "")


def test_other_devices_are_none_and_an_empty_machine_has_none(tmp_path: Path) -> None:
    assert accelerators(tmp_path) == []
    SysfsTree(tmp_path).plug("usb-keyboard")
    assert accelerators(tmp_path) == []


def test_attributes_are_read_with_and_without_units_and_parents_are_found(tmp_path: Path) -> None:
    SysfsTree(tmp_path).plug("coral-usb-on-weak-usb2-hub")
    (found,) = accelerators(tmp_path)
    assert found.device.number("bMaxPower") == 498
    assert found.device.number("speed") == 480
    assert found.device.number("product") is None
    assert found.device.number("not-there") is None
    assert [parent.name for parent in found.device.parents()] == ["1-3", "usb1", "0000:00:14.0"]
    assert SysDevice(tmp_path / "nowhere").text("name") == ""
