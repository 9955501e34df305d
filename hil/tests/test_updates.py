"""Updates of the system over the air: the better one is kept, each bad one ends on the old slot with its reason told.

Each test begins with a device that runs from slot a, as the factory and its claim have made it.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hil.rig import media, models
from hil.rig.bundles import Kind
from hil.rig.device import GATEWAY
from hil.rig.disk import partitions
from hil.rig.flips import write_below
from hil.rig.rig import Rig
from hil.rig.site import Told

pytestmark = [pytest.mark.hil, pytest.mark.lg_feature("a-b"), pytest.mark.timeout(7200)]


def given(rig: Rig, kind: Kind) -> Told:
    """Give a bundle of a kind to a device that runs; returns how it ended in the device's words."""
    rig.reach("running")
    assert rig.device.booted_slot() == "a"
    rig.rest()
    return rig.site.ended(rig.site.publish(rig.site.bundle(kind)))


def test_an_update_over_the_air_runs_from_the_other_slot_and_is_kept(rig: Rig) -> None:
    rig.reach("updated")
    assert rig.device.booted_slot() == "b"
    assert rig.device.release()["version"] == "0.1.1"
    assert rig.device.slots()["b"]["boot_status"] == "good"
    told = rig.site.told("0.1.1")
    assert told is not None
    assert told.fetched_bytes < told.full_bytes / 6  # of two releases that are nearly alike


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_an_updated_device_is_the_same_gateway_and_goes_on_watching(rig: Rig) -> None:
    rig.reach("updated")
    before = len(rig.cloud.ask("identity", "devices"))
    rig.unplug("camera")
    rig.plug("camera")
    rig.show("bright")
    assert rig.event("light", models.LABEL, seconds=300.0)["gateway"] == rig.gateway
    assert len(rig.cloud.ask("identity", "devices")) == before


@pytest.mark.parametrize(
    ("kind", "codes"),
    [("foreign", {"signature"}), ("below-floor", {"floor"}), ("damaged", {"signature", "refused"})],
)
def test_a_bundle_that_must_not_be_installed_is_refused_and_the_bridge_hears_why(
    rig: Rig, kind: Kind, codes: set[str]
) -> None:
    told = given(rig, kind)
    assert told.phase in ("refused", "blocked")
    assert told.code in codes
    assert rig.device.booted_slot() == "a"
    assert rig.device.slots()["a"]["boot_status"] == "good"


def test_a_system_whose_gateway_does_not_run_is_left_for_the_old_one_and_the_bridge_hears_why(rig: Rig) -> None:
    rig.reach("running")
    rig.rest()
    version = rig.site.publish(rig.site.bundle("unhealthy"))
    rig.device.eventually(
        "grep -q rauc.slot=b /proc/cmdline && systemctl is-active -q multi-user.target",
        "the new system boots",
        seconds=1800.0,
    )
    # systemd's own boot assessment would call it good now, and count no more: the boot is complete.
    assert rig.device.slots()["b"]["boot_status"] == "bad", "it is on trial still"
    told = rig.site.ended(version)
    assert (told.phase, told.code) == ("reverted", "health")
    assert "does not answer" in told.reason
    is_back_on_the_old_one(rig)


def test_a_system_whose_gateway_starts_well_and_dies_within_the_soak_is_left_for_the_old_one(rig: Rig) -> None:
    told = given(rig, "dying")
    assert (told.phase, told.code) == ("reverted", "health")
    assert re.search(r"has restarted \d+ times|has stopped answering|has not answered", told.reason)
    is_back_on_the_old_one(rig)


def test_a_system_that_was_called_good_as_soon_as_it_had_booted_would_never_be_left(rig: Rig) -> None:
    """The control, and why systemd-bless-boot is masked: it takes the counter away whatever the gateway does."""
    rig.reach("running")
    rig.rest()
    rig.site.publish(rig.site.bundle("unhealthy"))
    rig.device.eventually(
        "grep -q rauc.slot=b /proc/cmdline && systemctl is-active -q multi-user.target",
        "the new system boots",
        seconds=1800.0,
    )
    rig.device.run("rauc status mark-good booted && sync")
    rig.device.eventually(
        "systemctl show -P Result sluice-unhealthy.service | grep -qx exec-condition",
        "its health is found bad, and nothing follows",
        seconds=1200.0,
    )
    rig.reboot()
    assert rig.device.booted_slot() == "b"
    assert rig.device.attempt("systemctl is-active gateway.service")[0] != "active"


@pytest.mark.parametrize("kind", ["panicking", pytest.param("silent", marks=pytest.mark.lg_feature("watchdog"))])
def test_a_system_that_panics_or_does_nothing_any_more_is_left_for_the_old_one_and_the_bridge_hears_why(
    rig: Rig, kind: Kind
) -> None:
    told = given(rig, kind)
    assert (told.phase, told.code) == ("reverted", "no-boot")
    assert "tries to boot are used up" in told.reason
    is_back_on_the_old_one(rig)


@pytest.mark.lg_feature("virtual")
def test_a_slot_that_was_tampered_with_is_never_run_and_the_bridge_hears_of_it(rig: Rig) -> None:
    rig.reach("running")
    rig.rest()
    bundle = rig.site.bundle("good")
    version = rig.site.publish(bundle)
    rig.machine.qmp.wait_for("RESET", seconds=2400.0)
    # The firmware runs now. Until the kernel reads the new slot, somebody has changed what that will find there.
    slot = partitions(rig.site.image / "disk-rig.raw")["root-b"]
    write_below(rig.machine, slot.offset, 0xA5, 4096)
    told = rig.site.ended(version)
    assert (told.phase, told.code) == ("reverted", "no-boot")
    assert "does not verify" in told.reason
    console = rig.machine.console_log.read_text(errors="replace")
    assert re.search(r"verity: .*is corrupted", console), "that is what stopped it"
    is_back_on_the_old_one(rig)


def notices(rig: Rig, code: str) -> list[dict[str, Any]]:
    """Return what the bridge's store holds of notices with this code."""
    return [each for each in rig.cloud.ask("records", "--kind", "notice", "--limit", "200") if code in json.dumps(each)]


@pytest.mark.lg_feature("tpm")
def test_a_system_that_opens_no_data_any_more_is_left_for_the_one_before_and_the_bridge_hears_of_it(rig: Rig) -> None:
    """One changed byte in the kernel image of a slot that has proved itself: the TPM opens nothing to it."""
    rig.reach("updated")
    rig.changed()
    assert notices(rig, "os_other_slot") == [], "an update that leads to the other slot is none"
    kernel = "/efi/EFI/sluice/b.efi"
    rig.device.run(
        f"at=$(grep -abo PRETTY_NAME= {kernel} | head -n 1 | cut -d: -f1) && "
        f"printf Q | dd of={kernel} bs=1 seek=$at conv=notrunc status=none && sync"
    )
    the_other_slot_runs(rig)


@pytest.mark.lg_feature("firmware-variables")
def test_a_system_that_panics_at_each_start_is_left_for_the_one_before_and_the_bridge_hears_of_it(rig: Rig) -> None:
    """A bad block in the root of a slot that has proved itself, of which the boot loader counts no tries."""
    rig.reach("updated")
    rig.changed()
    rig.device.run("dd if=/dev/zero of=/dev/disk/by-partlabel/root-b bs=4096 count=1 conv=notrunc status=none && sync")
    the_other_slot_runs(rig)
    # The next system that is found healthy puts what is left of the panics into the log, and they count no more. It may
    # be the one in slot b: what was lost there is installed anew.
    said = "journalctl -q -u systemd-pstore.service -o cat --output-fields=FILE | grep -aq 'verity.*is corrupted'"
    rig.device.eventually(f"{said} && ! ls /sys/fs/pstore/dmesg-* 2>/dev/null", "the panics are logged", seconds=2400.0)


def the_other_slot_runs(rig: Rig) -> None:
    """Start the device again, from slot b, and see it come to slot a, of which the bridge hears."""
    rig.device.attempt("systemctl reboot --no-block")
    rig.device.eventually(
        "grep -q rauc.slot=a /proc/cmdline && systemctl is-active -q multi-user.target",
        "the system in the other slot runs",
        seconds=3600.0,
    )
    rig.until(lambda: bool(notices(rig, "os_other_slot")), "the bridge hears of it", seconds=900.0)


def is_back_on_the_old_one(rig: Rig) -> None:
    assert rig.device.booted_slot() == "a"
    rig.device.eventually("systemctl is-active -q gateway.service", "the old system's gateway runs", seconds=300.0)
    assert notices(rig, "os_other_slot") == [], "it came back by an update that was given up"


@pytest.mark.lg_feature("link-cut")
def test_an_installation_whose_link_is_cut_in_the_middle_is_taken_up_again(rig: Rig) -> None:
    rig.reach("running")
    rig.rest()
    registry = rig.cloud.links["registry"]
    before = registry.carried_down
    version = rig.site.publish(rig.site.bundle("good"))
    rig.until(lambda: registry.carried_down - before > 8 << 20, "the bundle is on its way", seconds=1200.0, every=0.1)
    rig.cut_cloud()
    rig.device.eventually(
        "journalctl -b -q -o cat -u gateway.service | grep -q os_update_waits", "it cannot go on", seconds=600.0
    )
    assert rig.device.slots()["b"].get("boot_status") == "bad", "half of a system is never started"
    rig.mend_cloud()
    rig.device.eventually(
        "journalctl -b -q -o cat -u gateway.service | grep -q '\"os_installed\"' || grep -q rauc.slot=b /proc/cmdline",
        "the second try goes through",
        seconds=1800.0,
    )
    told = rig.site.told(version)
    assert told is not None
    assert told.phase not in ("refused", "reverted", "blocked")


@pytest.mark.lg_feature("stick")
def test_an_update_on_a_stick_is_installed_where_the_configuration_allows_it(rig: Rig, tmp_path: Path) -> None:
    rig.reach("running")
    rig.rest()
    bundle = rig.site.bundle("good")
    version = rig.site.expect(bundle)
    stick = media.fat_stick(tmp_path / "stick.img", {"update.raucb": bundle}, mib=(bundle.stat().st_size >> 20) + 64)
    rig.device.run("printf '\\nos: {media: install}\\n' >>/data/etc-sluice/gateway.yaml && sync")
    rig.device.run("systemctl restart --no-block gateway.service")
    rig.plug("stick", stick)
    rig.device.eventually("ls /run/media/*/update.raucb", "the stick is mounted", seconds=120.0)
    options = rig.device.run("findmnt -n -o OPTIONS $(dirname /run/media/*/update.raucb)").split(",")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
    rig.device.eventually(
        "grep -q rauc.slot=b /proc/cmdline && systemctl is-active -q multi-user.target",
        "the system of the stick boots",
        seconds=2400.0,
    )
    rig.unplug("stick")
    rig.device.eventually("! findmnt -n /run/media/sda", "what was pulled out is mounted no more", seconds=60.0)
    assert rig.site.ended(version).phase == "running"
    assert rig.device.booted_slot() == "b"


def vault(rig: Rig) -> dict[str, Any]:
    """Return what the vault says of itself; its exit status tells whether it would open."""
    store: dict[str, Any] = json.loads(rig.device.attempt(f"{GATEWAY} vault status --json", seconds=300.0)[0])["store"]
    return store


@pytest.mark.lg_feature("tpm")
def test_a_system_of_an_older_generation_gets_no_key_any_more_once_a_newer_one_was_kept(rig: Rig) -> None:
    rig.reach("running")
    rig.rest()
    before = vault(rig)
    assert (before["ready"], before["counter"]) == (True, 1), "the same system opens it now"
    version = rig.site.publish(rig.site.bundle("next-generation"))
    assert rig.site.ended(version).phase == "running"
    rig.until(
        lambda: vault(rig)["counter"] == 2, "the counter moves once the new system was marked good", seconds=300.0
    )
    assert vault(rig)["ready"]
    # By root, and past the gateway, which would refuse to go back.
    rig.device.run("rauc status mark-active other && sync")
    rig.reboot()
    assert rig.device.booted_slot() == "a"
    rig.device.eventually("systemctl is-active -q gateway.service", "the old system's gateway runs", seconds=600.0)
    after = vault(rig)
    assert (after["ready"], after["counter"]) == (False, 2)
    assert "this image is too old" in " ".join(after["reasons"])
    rig.until(lambda: bool(rig.device.pipelines()), "its gateway answers", seconds=600.0)
    assert [told.get("inferences", 0) for told in rig.device.pipelines().values()] == [0, 0]
