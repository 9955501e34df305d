"""Both slots, without a cloud: RAUC streams a bundle from this machine, and the boot counter decides."""

import json
import os
import random
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig.bundles import FREEZE, Kind, bundle
from hil.rig.device import Device
from hil.rig.machine import Machine, boots, tail
from hil.rig.qmp import QmpError
from hil.rig.ranged import RangedServer
from tests.image.conftest import BOOT_SECONDS, device_of

pytestmark = [pytest.mark.image, pytest.mark.timeout(5400)]

INSTALL_SECONDS = 1200.0
CUTS = int(os.environ.get("SLUICE_RIG_CUTS", "0"))
SEED = int(os.environ.get("SLUICE_RIG_SEED", "1"))


def install(device: Device, image: Path, kind: Kind, *, tries: int = 4) -> tuple[int, str]:
    """Stream a bundle, again where RAUC's first use of its network block device fails; returns status and words."""
    file = bundle(kind, image, "rig")
    with RangedServer(file.parent) as server:
        for _ in range(tries):
            out, err, code = device.attempt(
                f"rauc install http://10.0.2.2:{server.port}/{file.name} 2>&1", seconds=INSTALL_SECONDS
            )
            if code == 0 or "too small" not in out + err:
                break
    return code, out + err


def restarts(machine: Machine, device: Device) -> Device:
    before = device.boot_id()
    device.attempt("systemctl reboot --no-block")
    return comes_back(machine, before)


def comes_back(machine: Machine, before: str) -> Device:
    device = device_of(machine)
    device.eventually(
        f"test $(cat /proc/sys/kernel/random/boot_id) != {before} && systemctl is-active -q multi-user.target",
        "the device restarts",
        seconds=3 * BOOT_SECONDS,  # three tries of another slot may come first
    )
    return device


def is_good(device: Device, slot: str) -> bool:
    return bool(device.slots()[slot].get("boot_status") == "good")


def test_an_update_boots_the_other_slot_keeps_the_data_and_is_kept_after_its_soak(booted: Machine, image: Path) -> None:
    device = device_of(booted)
    device.run("echo kept >/data/rig-kept")
    code, said = install(device, image, "good")
    assert code == 0, said
    device = restarts(booted, device)
    assert device.booted_slot() == "b"
    assert device.release()["version"] == "0.1.1"
    assert device.run("cat /data/rig-kept") == "kept"
    device.eventually(
        "systemctl show -P Result sluice-good.service | grep -qx success && "
        "systemctl show -P ExecMainExitTimestampMonotonic sluice-good.service | grep -qv '^0$'",
        "the new slot is kept",
        seconds=600.0,
    )
    assert is_good(device, "b")
    # And it stays.
    assert restarts(booted, device).booted_slot() == "b"


def panics(machine: Machine) -> int:
    """Count what the console has said of the kernel's end."""
    return len(re.findall("Kernel panic", machine.console_log.read_text(errors="replace")))


def bites(machine: Machine) -> int:
    """Count how often the watchdog has reset the machine since it has power."""
    machine.qmp.command("query-status")  # what has happened is told before the answer
    return sum(each["event"] == "WATCHDOG" for each in machine.qmp.events)


@pytest.mark.parametrize(("kind", "ends"), [("panicking", panics), ("silent", bites)])
def test_a_system_that_does_not_come_up_is_left_after_its_tries(
    booted: Machine, image: Path, kind: Kind, ends: Callable[[Machine], int]
) -> None:
    device, before = device_of(booted), ends(booted)
    code, said = install(device, image, kind)
    assert code == 0, said
    device.run("sync")
    device = restarts(booted, device)
    assert device.booted_slot() == "a"
    assert device.slots()["b"].get("boot_status") == "bad"
    assert ends(booted) - before >= 2


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("foreign", "signature|verif|certificate"),
        # At a file that cannot be read the service of RAUC 1.13 crashes, and is there again a moment later.
        ("damaged", "signature|verif|hash|Input/output|corrupt|squashfs|service disappeared"),
        ("below-floor", "Pre-install handler error: .* code 20"),  # the words are in RAUC's own log
    ],
)
def test_a_bundle_that_must_not_be_installed_is_refused_with_the_reason(
    booted: Machine, image: Path, kind: Kind, why: str
) -> None:
    device = device_of(booted)
    code, said = install(device, image, kind, tries=2)
    assert code != 0
    assert re.search(why, said, re.IGNORECASE), said
    assert device.slots()["a"].get("boot_status") == "good"
    primary = json.loads(device.run("rauc status --output-format=json"))["boot_primary"]
    assert primary == "rootfs.0"


def test_a_streaming_install_that_failed_goes_through_when_it_is_tried_again(booted: Machine, image: Path) -> None:
    """A server may be away for longer than RAUC goes on asking; and RAUC 1.13 may fail at its first streaming."""
    device = device_of(booted)
    file = bundle("good", image, "rig")
    with RangedServer(file.parent) as server:
        address = f"http://10.0.2.2:{server.port}/{file.name}"
        server.refuse_next = 1 << 30
        assert device.attempt(f"rauc install {address}", seconds=INSTALL_SECONDS)[2] != 0
        assert server.requests > 0
        assert device.slots()["a"].get("boot_status") == "good"
        server.refuse_next = 0
        code, said = install(device, image, "good")
    assert code == 0, said


@pytest.mark.parametrize("watched", [True, False], ids=["with the watchdog", "without it"])
def test_a_system_that_does_nothing_any_more_is_started_again_by_the_watchdog(
    booted: Machine, *, watched: bool
) -> None:
    device = device_of(booted)
    if not watched:
        booted.qmp.command("set-action", watchdog="none")
    device.run(f"echo 1 >{FREEZE}")
    booted.qmp.wait_for("WATCHDOG", seconds=300.0)
    if watched:
        booted.qmp.wait_for("RESET", seconds=30.0)
        return
    with pytest.raises(QmpError, match="RESET"):
        booted.qmp.wait_for("RESET", seconds=120.0)
    assert device.attempt("systemctl show -P Version", seconds=30.0)[2] != 0, "it hangs still"


@pytest.mark.parametrize("protected", [True, False], ids=["with CrashAction=reboot", "without it"])
def test_a_first_process_that_crashes_starts_the_device_again(booted: Machine, *, protected: bool) -> None:
    """Left to itself it stays as it is for ever: it also lets go of the watchdog."""
    device = device_of(booted)
    if not protected:
        device.put(b"[Manager]\nCrashAction=freeze\n", "/run/systemd/system.conf.d/90-rig.conf", mode="644")
        device.run("systemctl daemon-reexec && systemctl is-active -q multi-user.target")
    device.run("kill -SEGV 1")
    if protected:
        booted.qmp.wait_for("RESET", seconds=60.0)
        return
    with pytest.raises(QmpError, match="RESET"):
        booted.qmp.wait_for("RESET", seconds=150.0)
    assert device.run("cat /sys/class/watchdog/watchdog0/state") == "inactive"


def begin_install(device: Device, server: RangedServer, file: Path) -> None:
    device.run(f"systemd-run --unit=rig-install rauc install http://10.0.2.2:{server.port}/{file.name}")


def cut_and_return(machine: Machine) -> Device:
    machine.cut_power()
    machine.power_on()
    boots(machine, seconds=3 * BOOT_SECONDS)
    device = device_of(machine)
    device.eventually("systemctl is-active -q multi-user.target", "the boot is finished", seconds=BOOT_SECONDS)
    return device


def stands_after_a_cut(device: Device) -> str:
    """Look at what a power cut has left; returns the slot that runs."""
    slot = device.booted_slot()
    assert device.run("cat /data/rig-kept") == "kept"
    assert device.failed_units() == []
    # Whichever runs is whole: every block of it is read and checked.
    device.run("cat /dev/mapper/root >/dev/null", seconds=INSTALL_SECONDS)
    return slot


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("! cmp -s -n 4096 /dev/zero /dev/disk/by-partlabel/root-b", id="while the slot is written"),
        pytest.param("ls /efi/EFI/sluice/.b.efi.new", id="while the kernel image is put in place"),
    ],
)
def test_a_power_cut_during_an_install_boots_the_old_slot(booted: Machine, image: Path, moment: str) -> None:
    device = device_of(booted)
    device.run("echo kept >/data/rig-kept && sync /data/rig-kept")
    file = bundle("good", image, "rig")
    with RangedServer(file.parent) as server:
        begin_install(device, server, file)
        # Asked inside of the guest: between two questions from here the moment would be gone.
        waiting = f"for _ in $(seq 36000); do {moment} 2>/dev/null && exit; sleep 0.1; done; exit 1"
        device.run(f"bash -c {shlex.quote(waiting)}", seconds=INSTALL_SECONDS)
        device = cut_and_return(booted)
        assert stands_after_a_cut(device) == "a"
        assert device.slots()["b"].get("boot_status") == "bad"
        # The second try goes through.
        code, said = install(device, image, "good")
        assert code == 0, said


@pytest.mark.skipif(not CUTS, reason="the long form: SLUICE_RIG_CUTS=20")
def test_power_cuts_at_any_moment_of_an_install_leave_a_device_that_boots(booted: Machine, image: Path) -> None:
    moments, told = random.Random(SEED), []
    file = bundle("good", image, "rig")
    device = device_of(booted)
    with RangedServer(file.parent) as server:
        start = time.monotonic()
        device.run(f"rauc install http://10.0.2.2:{server.port}/{file.name}", seconds=INSTALL_SECONDS)
        whole = time.monotonic() - start
        for number in range(CUTS):
            # In a new QEMU: in one that has run the guest's clock would leap ahead.
            booted.cut_power()
            booted.power_on()
            booted.restore("booted")
            device = device_of(booted)
            device.run("echo kept >/data/rig-kept && sync /data/rig-kept")
            begin_install(device, server, file)
            told.append(moments.uniform(0.0, 1.1) * whole)
            time.sleep(told[-1])  # the moment is what is tested
            try:
                # An install that had come to its end may be what is booted.
                assert stands_after_a_cut(cut_and_return(booted)) in "ab"
            except BaseException:
                print(f"seed {SEED}, cut {number}, {told[-1]:.1f} s after the beginning of {whole:.0f} s")
                raise


def test_the_console_of_a_failure_is_there_to_be_read(booted: Machine) -> None:
    assert tail(booted)
    with pytest.raises(RigError):
        device_of(booted).run("exit 3")
