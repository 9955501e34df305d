"""Erasing goes in an order in which a power cut harms nothing, and what it erases nobody opens again."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gateway.appliance.activation import run_command
from gateway.appliance.erase import Eraser, partitions
from gateway.appliance.errors import ApplianceError
from gateway.appliance.places import Places
from gateway.appliance.reset import request_reset, reset_wished
from gateway.appliance.tpmobjects import forget_storage_root
from gateway.config import Vault
from gateway.vault.errors import PolicyRefusedError, VaultError
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.objects import SRK_HANDLE
from tests.gateway.appliance.claims import CODE, NOW_NS, device, text
from tests.gateway.vault.device import Device
from tests.simulators.swtpm import Swtpm
from tests.simulators.swtpm import missing as missing_tpm


class PowerCutError(Exception):
    """The power goes."""


@dataclass
class Machine:
    """Runs nothing and writes down what it was told; knobs: commands that fail, and when the power goes."""

    places: Places
    cut_before: int = 1_000
    failing: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)  # partitions, by number

    def run(self, command: Sequence[str]) -> str:
        if len(self.told) >= self.cut_before:
            raise PowerCutError
        self.told.append(" ".join(command))
        if command[0] == "sfdisk":  # its partition is there no more after the next boot; the node stays until then
            self.gone.append(command[-1])
        return self.failing.get(command[0], "")


def partition(places: Places, name: str, label: str, number: int) -> Path:
    disk = places.sysfs / "devices/vda"
    (disk / name).mkdir(parents=True)
    (disk / name / "partition").write_text(f"{number}\n")
    block = places.sysfs / "class/block"
    block.mkdir(parents=True, exist_ok=True)
    (block / name).symlink_to(disk / name)
    node = places.devices / name
    node.touch()
    links = places.devices / "disk/by-partlabel"
    links.mkdir(parents=True, exist_ok=True)
    (links / label).symlink_to(node)
    return node


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = device(tmp_path)
    partition(places, "vda4", "data", 4)
    partition(places, "vda5", "outbox", 5)
    (places.esp / "sluice-claim.yaml").write_bytes(text())
    places.reset_code.write_text("{}")
    request_reset(places, gateway=None, by="command", why="", now_ns=NOW_NS)
    return places


def forgotten() -> str:
    return ""


def test_partitions_are_found_by_their_labels(places: Places) -> None:
    assert [(each.label, each.device.name, each.disk.name, each.number) for each in partitions(places)] == [
        ("outbox", "vda5", "vda", 5),
        ("data", "vda4", "vda", 4),
    ]


def test_the_table_goes_first_then_the_keys_then_the_blocks(places: Places) -> None:
    machine = Machine(places)
    done = Eraser(places, machine.run, forgotten).erase()
    assert [command.split()[0] for command in machine.told] == [
        *["sfdisk"] * 2,
        *["cryptsetup"] * 2,
        *["wipefs", "blkdiscard"] * 2,
    ]
    assert machine.told[0] == f"sfdisk --no-reread --no-tell-kernel --delete {places.devices}/vda 5"
    assert machine.told[2] == f"cryptsetup erase --batch-mode {places.devices}/vda5"
    assert (done.partitions, done.not_discarded, done.tpm) == (("outbox", "data"), (), "")
    assert not (places.esp / "sluice-claim.yaml").exists()
    assert not places.reset_code.exists()
    assert CODE not in "".join(file.read_text() for file in places.esp.iterdir())
    assert not places.reset_marker.exists()


def test_after_every_power_cut_either_the_request_or_the_marker_is_still_there(places: Places) -> None:
    for moment in range(9):
        machine = Machine(places, cut_before=moment)
        try:
            Eraser(places, machine.run, forgotten).erase()
        except PowerCutError:
            assert places.reset_marker.exists(), moment
            # Keys are destroyed only where the first boot finds no partition that it would wait for.
            if any("cryptsetup" in command for command in machine.told):
                assert machine.gone == ["5", "4"]
            # The next boot has no data partition, and so no request: the marker alone has it go on.
            if machine.gone == ["5", "4"]:
                places.reset_request.unlink(missing_ok=True)
            assert reset_wished(places), moment
    places.reset_request.unlink(missing_ok=True)
    assert not reset_wished(places)


def test_a_tpm_that_does_not_answer_keeps_no_disk_from_being_erased(places: Places) -> None:
    done = Eraser(places, Machine(places).run, lambda: "the TPM does not answer").erase()
    assert done.tpm == "the TPM does not answer"
    assert done.partitions == ("outbox", "data")


def test_a_medium_that_takes_no_blocks_back_is_told(places: Places) -> None:
    done = Eraser(places, Machine(places, failing={"blkdiscard": "not supported"}).run, forgotten).erase()
    assert done.not_discarded == ("outbox", "data")


def test_keys_that_cannot_be_destroyed_are_an_error_and_tried_again(places: Places) -> None:
    with pytest.raises(ApplianceError, match=r"cryptsetup erase .*: no such device; start the device again"):
        Eraser(places, Machine(places, failing={"cryptsetup": "no such device"}).run, forgotten).erase()
    assert places.reset_marker.exists()


def test_a_boot_partition_that_cannot_be_written_stops_it_before_anything_is_lost(places: Places) -> None:
    shutil.rmtree(places.esp)
    machine = Machine(places)
    with pytest.raises(ApplianceError, match="nothing was erased yet"):
        Eraser(places, machine.run, forgotten).erase()
    assert machine.told == []


def test_a_machine_that_is_no_appliance_is_left_alone(tmp_path: Path) -> None:
    places = device(tmp_path)
    assert partitions(places) == []
    partition(places, "vda4", "data", 4)
    (places.sysfs / "devices/vda/vda4/partition").unlink()
    with pytest.raises(ApplianceError, match="only an appliance can be erased"):
        partitions(places)


# ---- with the real programs ----------------------------------------------------------------------


needs_programs = pytest.mark.skipif(
    any(shutil.which(name, path="/usr/sbin:/usr/bin") is None for name in ("cryptsetup", "sfdisk", "wipefs")),
    reason="cryptsetup-bin, fdisk or util-linux is not installed",
)


@needs_programs
@pytest.mark.timeout(120)
def test_a_real_partition_opens_with_its_key_before_and_with_none_after(tmp_path: Path) -> None:
    places = device(tmp_path)
    node = partition(places, "vda1", "data", 1)
    with node.open("wb") as out:
        out.truncate(32 * 1024 * 1024)
    disk = places.devices / "vda"
    with disk.open("wb") as out:
        out.truncate(8 * 1024 * 1024)
    subprocess.run(["sfdisk", "-q", disk], input="label: gpt\n,2M,L\n,2M,L\n", text=True, check=True)
    key = tmp_path / "key"
    key.write_bytes(b"of the TPM")
    fast = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    subprocess.run(["cryptsetup", "luksFormat", "-q", "--type", "luks2", *fast, str(node), str(key)], check=True)

    def opens() -> bool:
        command = ["cryptsetup", "open", "--test-passphrase", "--key-file", str(key), str(node)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert opens()
    Eraser(places, run_command, forgotten).erase()
    assert not opens()
    table = subprocess.run(["sfdisk", "-d", disk], capture_output=True, text=True, check=True).stdout
    assert f"{disk}1" not in table
    assert f"{disk}2" in table


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    tpm = Swtpm(tmp_path)
    tpm.start()
    yield tpm
    tpm.kill()


@pytest.mark.skipif(bool(missing_tpm()), reason=missing_tpm())
def test_the_tpm_forgets_the_storage_root_and_the_next_owners_vault_opens(tmp_path: Path, tpm: Swtpm) -> None:
    device = Device(tmp_path, tpm.tcti, generate_private_key(SECP256R1()))
    device.initialised()
    assert forget_storage_root(device.settings) == ""
    assert SRK_HANDLE not in device.connection.call("looking", lambda each: list(each.handles(SRK_HANDLE)))
    with pytest.raises(VaultError, match="no storage root key"):
        device.vault().check()
    shutil.rmtree(device.state)  # as the disk was erased
    device.vault().initialise()
    device.vault().check()


@pytest.mark.skipif(bool(missing_tpm()), reason=missing_tpm())
def test_a_reset_that_took_the_counter_away_would_lock_the_next_owner_out(tmp_path: Path, tpm: Swtpm) -> None:
    """The control for keeping the counter: a new one begins above the old, beyond what the image is approved for."""
    device = Device(tmp_path, tpm.tcti, generate_private_key(SECP256R1()))
    index = device.initialised().status().store.counter_index
    assert index is not None
    assert forget_storage_root(device.settings) == ""

    def remove(each: Tpm) -> None:
        handle = each.esys.tr_from_tpmpublic(index)
        each.esys.nv_undefine_space(handle, each.pytss.ESYS_TR.OWNER)

    device.connection.call("removing the counter", remove)
    shutil.rmtree(device.state)
    device.vault().initialise()
    with pytest.raises(PolicyRefusedError, match="counter"):
        device.vault().check()


@pytest.mark.skipif(bool(missing_tpm()), reason=missing_tpm())
def test_a_tpm_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    settings = Vault(level="tpm", tcti="swtpm:host=127.0.0.1,port=1", timeout_seconds=1.0)
    assert forget_storage_root(settings)
    assert forget_storage_root(Vault(level="software")) == ""
