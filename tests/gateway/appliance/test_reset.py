"""A device is erased by who may, and by nobody else."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import yaml

from cloud_bridge.identity.claimfile import new_reset_code
from cloud_bridge.identity.claimfile import reset_digest as digest_of_bridge
from gateway.appliance.errors import ApplianceError
from gateway.appliance.places import Places
from gateway.appliance.plan import Provisioned
from gateway.appliance.reset import (
    Refused,
    ResetStick,
    keep_reset_code,
    look_for_stick,
    request_reset,
    reset_digest,
    reset_wished,
    stick_allows,
    withdraw_reset,
)
from gateway.appliance.volumes import Volume
from tests.gateway.appliance.claims import NOW_NS, device
from tests.gateway.appliance.disks import fat_head, plug

CODE = "abcd-efgh-jkmn-pqrs"


def record(reset: str | None = reset_digest(CODE)) -> Provisioned:
    return Provisioned(gateway="dock-7", at="", origin="stick", reset_digest=reset)


def stick(gateway: str = "dock-7", code: str = CODE, version: int = 1) -> bytes:
    return yaml.safe_dump({"version": version, "gateway": gateway, "code": code}).encode()


@dataclass
class Mounter:
    """Stands in for mount(8): a volume is a folder."""

    folder: Path
    mounted_volumes: list[Volume] = field(default_factory=list)

    @contextlib.contextmanager
    def mounted(self, volume: Volume, *, writable: bool) -> Iterator[Path]:
        self.mounted_volumes.append(volume)
        yield self.folder


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = device(tmp_path)
    places.provisioned.write_bytes(msgspec.json.encode(record()))
    return places


def test_a_command_on_the_device_asks_for_it_and_may_take_it_back(places: Places) -> None:
    request_reset(places, gateway=None, by="command", why="sold", now_ns=NOW_NS)
    assert reset_wished(places)
    assert msgspec.json.decode(places.reset_request.read_bytes())["gateway"] == "dock-7"
    assert withdraw_reset(places)
    assert not withdraw_reset(places)
    assert not reset_wished(places)


def test_another_gateways_id_resets_nothing(places: Places) -> None:
    with pytest.raises(ApplianceError, match="this is dock-7 and not dock-8"):
        request_reset(places, gateway="dock-8", by="command", why="", now_ns=NOW_NS)
    assert not reset_wished(places)


def test_a_stick_with_the_code_resets_the_device_it_names() -> None:
    assert isinstance(stick_allows(stick(), record()), ResetStick)
    assert isinstance(stick_allows(stick(code="ABCD EFGH jkmn pqrs"), record()), ResetStick)


@pytest.mark.parametrize(
    ("content", "known", "why"),
    [
        (stick(code="abcd-efgh-jkmn-pqrt"), record(), "its code is not the one of this device"),
        (stick(code=""), record(), "its code is not the one"),
        (stick(gateway="dock-8"), record(), "it is for dock-8, this is dock-7"),
        (stick(), record(None), "claimed without a reset code; only a command on it"),
        (stick(), None, "only a command on it"),
        (stick(version=2), record(), "it cannot be read"),
        (b"version: 1\ngateway: dock-7\n", record(), "it cannot be read"),
        (b"\xff", record(), "it cannot be read"),
        (b"version: 1\ngateway: dock-7\nreset: true\n", record(), "it cannot be read"),
    ],
)
def test_the_id_alone_and_whatever_else_resets_nothing(content: bytes, known: Provisioned | None, why: str) -> None:
    answer = stick_allows(content, known)
    assert isinstance(answer, Refused)
    assert why in answer.why


def test_device_and_bridge_compute_the_same_digest() -> None:
    code = new_reset_code()
    assert digest_of_bridge(code) == reset_digest(code.upper().replace("-", " "))


def test_a_stick_in_the_device_is_found_and_told(places: Places, tmp_path: Path) -> None:
    plug(places, "sda1", fat_head(b"WHATEVER"))
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "sluice-reset.yaml").write_bytes(stick(code="wrong"))
    said: list[str] = []
    assert look_for_stick(places, Mounter(folder), said.append, NOW_NS) is None
    assert "resets nothing: its code is not" in said[0]
    (folder / "sluice-reset.yaml").write_bytes(stick())
    request = look_for_stick(places, Mounter(folder), said.append, NOW_NS)
    assert request is not None
    assert request.by == "stick"
    assert reset_wished(places)


def test_where_no_stick_could_reset_none_is_even_mounted(places: Places, tmp_path: Path) -> None:
    plug(places, "sda1", fat_head(b"WHATEVER"))
    places.provisioned.write_bytes(msgspec.json.encode(record(None)))
    mounter = Mounter(tmp_path)
    assert look_for_stick(places, mounter, lambda _: None, NOW_NS) is None
    assert mounter.mounted_volumes == []


@pytest.mark.parametrize(
    ("is_kept", "code", "resets"), [(True, CODE, True), (True, "abcd-efgh-jkmn-pqrt", False), (False, CODE, False)]
)
def test_a_stick_resets_a_device_whose_data_partition_is_lost_where_the_boot_partition_knows_its_code(
    places: Places, tmp_path: Path, *, is_kept: bool, code: str, resets: bool
) -> None:
    if is_kept:
        keep_reset_code(places, record())
    shutil.rmtree(places.settings.parent)
    plug(places, "sda1", fat_head(b"WHATEVER"))
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "sluice-reset.yaml").write_bytes(stick(code=code))
    request = look_for_stick(places, Mounter(folder), lambda _: None, NOW_NS)
    assert (request is not None) is resets
    assert places.reset_marker.exists() is resets
    assert reset_wished(places) is resets


def test_the_boot_partition_knows_the_code_of_the_last_claim_and_is_written_when_that_changes(places: Places) -> None:
    keep_reset_code(places, record())
    first = places.reset_code.stat()
    keep_reset_code(places, record())
    assert places.reset_code.stat().st_ino == first.st_ino
    keep_reset_code(places, record(reset_digest("another")))
    assert reset_digest("another") in places.reset_code.read_text()
    assert CODE not in places.reset_code.read_text()
    keep_reset_code(places, record(None))
    assert not places.reset_code.exists()
    keep_reset_code(places, record(None))


def test_a_damaged_file_on_the_boot_partition_is_no_code(places: Places, tmp_path: Path) -> None:
    shutil.rmtree(places.settings)
    places.reset_code.write_bytes(b"\xff{")
    mounter = Mounter(tmp_path)
    assert look_for_stick(places, mounter, lambda _: None, NOW_NS) is None
    assert mounter.mounted_volumes == []
    keep_reset_code(places, record())
    assert reset_digest(CODE) in places.reset_code.read_text()


def test_where_the_data_partition_is_there_the_boot_partition_is_not_asked(places: Places, tmp_path: Path) -> None:
    keep_reset_code(places, record())
    places.provisioned.write_bytes(msgspec.json.encode(record(None)))
    plug(places, "sda1", fat_head(b"WHATEVER"))
    mounter = Mounter(tmp_path)
    assert look_for_stick(places, mounter, lambda _: None, NOW_NS) is None
    assert mounter.mounted_volumes == []
