"""What a device is when it has booted for the first time, before anybody has told it anything."""

import re

import pytest

from hil.rig.documented import reachable
from hil.rig.rig import Rig

pytestmark = [pytest.mark.hil, pytest.mark.timeout(2400)]

EXPOSURE_LIMIT = 2.0
REFUSED = re.compile("Access ?[Dd]enied|[Rr]ejected|not allowed")
"""What D-Bus says of a message that its policy does not let through."""
_RAUC = "de.pengutronix.rauc / de.pengutronix.rauc.Installer"
ASKED_OF_RAUC = {
    f"call {_RAUC} InstallBundle 'sa{{sv}}' /run/none.raucb 0": "to install",
    f"call {_RAUC} InspectBundle 'sa{{sv}}' /run/none.raucb 0": "what a bundle is",
    f"call {_RAUC} GetSlotStatus": "how the slots stand",
    f"call {_RAUC} GetPrimary": "which slot is next",
    f"get-property {_RAUC} Progress": "how far it is",
}
"""Words of busctl: all that the gateway needs of RAUC. There is no such bundle; RAUC says so itself."""


def listening(rig: Rig) -> set[str]:
    """Return protocol and port of what accepts connections from outside: `tcp/22`."""
    found = set()
    for line in rig.device.run("ss -H -l -n -t -u").splitlines():
        protocol, state, *_rest = line.split()
        address = line.split()[4]
        host, _, port = address.rpartition(":")
        if re.match(r"^(127\.|\[::1\]|\[::ffff:127\.)", host) or not port.isdigit():
            continue
        assert state in ("LISTEN", "UNCONN")
        found.add(f"{protocol}/{port}")
    return found


def test_the_device_boots_from_slot_a(rig: Rig) -> None:
    rig.reach("booted")
    assert rig.device.booted_slot() == "a"
    assert rig.device.release()["version"]


def test_nothing_has_failed_during_the_first_boot(rig: Rig) -> None:
    rig.reach("booted")
    assert rig.device.failed_units() == []


@pytest.mark.lg_feature("tpm")
def test_the_tpm_is_there_and_the_boot_was_measured(rig: Rig) -> None:
    rig.reach("booted")
    values = {
        number: rig.device.run(f"cat /sys/class/tpm/tpm0/pcr-sha256/{number}").strip() for number in (0, 4, 7, 11)
    }
    assert all(int(value, 16) for value in values.values()), values
    assert rig.device.run("test -c /dev/tpmrm0 && echo there") == "there"


@pytest.mark.lg_feature("verity")
def test_the_root_is_read_only_and_every_block_is_checked(rig: Rig) -> None:
    rig.reach("booted")
    options = rig.device.run("findmnt -n -o FSTYPE,OPTIONS /").split()
    assert options[0] == "erofs"
    assert "ro" in options[1].split(",")
    source = rig.device.run("findmnt -n -o SOURCE /").strip()
    assert "verity" in rig.device.run(f"dmsetup table {source} 2>/dev/null || veritysetup status {source}")
    assert rig.device.attempt("touch /usr/written")[2] != 0


@pytest.mark.lg_feature("disk-encryption")
@pytest.mark.parametrize("mount", ["/data", "/data/outbox"])
def test_data_and_outbox_are_encrypted_file_systems_of_their_own(rig: Rig, mount: str) -> None:
    rig.reach("booted")
    kind, source = rig.device.run(f"findmnt -n -o FSTYPE,SOURCE {mount}").split()
    assert kind == "ext4"
    told = rig.device.run(f"cryptsetup status {source}")
    assert "LUKS2" in told


@pytest.mark.lg_feature("disk-encryption")
def test_the_disk_opens_by_the_tpm_and_by_no_passphrase(rig: Rig) -> None:
    rig.reach("booted")
    for label in ("data", "outbox"):
        dump = rig.device.run(f"cryptsetup luksDump /dev/disk/by-partlabel/{label}")
        assert "systemd-tpm2" in dump
        slots = re.findall(r"^\s+(\d+): luks2", dump, re.MULTILINE)
        assert len(slots) == 1, f"one key, that of the TPM:\n{dump}"


def test_nothing_listens_before_the_device_is_provisioned(rig: Rig) -> None:
    rig.reach("booted")
    assert listening(rig) <= reachable(with_key=False)


def test_nobody_can_log_in_with_a_password(rig: Rig) -> None:
    rig.reach("booted")
    hashes = [line.split(":")[1] for line in rig.device.run("cat /etc/shadow").splitlines()]
    assert all(text.startswith(("*", "!")) for text in hashes)
    assert rig.device.attempt("systemctl is-active ssh.service")[0] != "active"


def test_the_gateway_waits_quietly_for_a_claim(rig: Rig) -> None:
    rig.reach("booted")
    assert rig.device.run("systemctl is-active sluice-provision.service").strip() == "active"
    assert rig.device.attempt("systemctl is-active gateway.service")[0] != "active"


@pytest.mark.parametrize("unit", ["gateway.service"])
def test_the_unit_is_hardened(rig: Rig, unit: str) -> None:
    rig.reach("booted")
    told = rig.device.run(f"systemd-analyze security --no-pager {unit} | tail -n 1")
    found = re.search(r" level for \S+: ([\d.]+) ", told)  # a face with a colon may follow
    assert found is not None, told
    assert float(found[1]) <= EXPOSURE_LIMIT, told


def test_no_program_gives_its_caller_more_rights(rig: Rig) -> None:
    rig.reach("booted")
    assert rig.device.run("find / -xdev -perm /6000 -type f 2>/dev/null", seconds=300.0) == ""


def test_the_boot_loader_does_not_bless_a_slot_by_itself(rig: Rig) -> None:
    """It did so as soon as the boot was complete, whatever the health check said later."""
    rig.reach("booted")
    assert rig.device.attempt("systemctl is-enabled systemd-bless-boot.service")[0] == "masked"


@pytest.mark.lg_feature("a-b")
def test_the_gateways_user_may_ask_how_the_slots_stand_and_may_not_change_them(rig: Rig) -> None:
    rig.reach("booted")
    as_gateway = "setpriv --reuid=sluice --regid=sluice --init-groups"
    assert '"bootname":"b"' in rig.device.run(
        f"{as_gateway} rauc status --detailed --output-format=json", seconds=120.0
    )
    for ask, what in ASKED_OF_RAUC.items():
        out, error, code = rig.device.attempt(f"{as_gateway} busctl --timeout=60 {ask}", seconds=120.0)
        assert not REFUSED.search(out + error), f"{what}: {error}"
        stranger = rig.device.attempt(f"setpriv --reuid=nobody --clear-groups busctl {ask}", seconds=120.0)
        assert stranger[2] != 0, what
        assert REFUSED.search(stranger[1]), what
    for mark in ("mark-good booted", "mark-bad other", "mark-active other"):
        out, error, code = rig.device.attempt(f"{as_gateway} rauc status {mark}", seconds=120.0)
        assert code != 0, mark
        assert REFUSED.search(out + error), mark
    # Control: root may.
    rig.device.run("rauc status mark-good booted", seconds=120.0)
