"""An unprovisioned device waits, takes its claim whole or not at all, and forgets it where it was."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.appliance.claim import read_claim
from gateway.appliance.errors import AlreadyProvisionedError, ClaimError
from gateway.appliance.finders import CameraFinder, FolderFinder
from gateway.appliance.offers import Finder, Offer
from gateway.appliance.places import Places
from gateway.appliance.placing import Account, Placing
from gateway.appliance.plan import BASE, plan
from gateway.appliance.provisioning import Provisioner, identifiers_of, read_provisioned
from gateway.configload import read
from gateway.wire.claimfile import to_qr
from tests.gateway.appliance.claims import CODE, NOW_NS, SSH_KEY, device, text, whole_claim
from tests.gateway.vault import kills

VICTIM = Path(__file__).with_name("provisioning_victim.py")


@dataclass
class Console:
    """What a person at the console reads, and what happens while the device waits."""

    places: Places
    finders: list[Finder]
    said: list[str] = field(default_factory=list)
    then: list[Callable[[], object]] = field(default_factory=list)

    def provisioner(self) -> Provisioner:
        return Provisioner(
            places=self.places,
            placing=Placing(self.places.settings, self.places.state),
            finders=self.finders,
            identifiers=lambda: {"SN-0042"},
            say=self.said.append,
            now_ns=lambda: NOW_NS,
        )

    def pause(self, _seconds: float) -> None:
        assert self.then, f"waits for ever: {self.said}"
        self.then.pop(0)()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return device(tmp_path)


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder


@pytest.fixture
def console(places: Places, stick: Path) -> Console:
    return Console(places, [FolderFinder(places.esp, "boot partition"), FolderFinder(stick, "USB stick")])


def test_it_says_what_it_waits_for_and_takes_a_claim_when_it_comes(console: Console, stick: Path) -> None:
    console.then = [lambda: None, lambda: None, lambda: (stick / "sluice-claim.yaml").write_bytes(text())]
    done = console.provisioner().scan(console.pause)
    assert (done.gateway, done.origin, done.image) == ("dock-7", "USB stick, sluice-claim.yaml", "2026.01")
    assert "SN-0042" in console.said[0]
    assert "waits for its claim" in console.said[0]
    assert "boot partition; USB stick" in console.said[0]
    assert console.said[-1] == "This device is now the gateway dock-7 (from USB stick, sluice-claim.yaml)."
    assert len(console.said) == 3


def test_what_comes_out_is_a_configuration_that_a_gateway_can_use(console: Console, stick: Path) -> None:
    (stick / "sluice-claim.yaml").write_bytes(text(**whole_claim()))
    console.provisioner().scan(console.pause)
    places = console.places
    assert read(places.config, require_files=False).errors == []
    assert (places.state / "identity/claim").read_text().strip() == CODE
    for file in (places.config, places.state / "identity/claim", places.settings / "secrets/dock-camera"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert (places.settings / "secrets").stat().st_mode & 0o777 == 0o700
    assert not (places.settings / ".claimed").exists()
    assert not (places.settings / ".claiming").exists()


def test_the_single_use_code_is_gone_from_the_stick_and_a_note_is_there(console: Console, stick: Path) -> None:
    (stick / "sluice-claim.yaml").write_bytes(text())
    console.provisioner().scan(console.pause)
    assert not (stick / "sluice-claim.yaml").exists()
    assert "taken by a device" in (stick / "sluice-claim.used.txt").read_text()
    assert CODE not in "".join(file.read_text() for file in stick.iterdir())


def test_a_stick_that_cannot_be_written_is_told_and_the_device_goes_on(console: Console, places: Places) -> None:
    class ReadOnly:
        words = "USB stick"

        def offers(self) -> Iterator[Offer]:
            yield Offer("USB stick", text(), lambda: "Read-only file system")

    console.finders = [ReadOnly()]
    console.provisioner().scan(console.pause)
    assert places.config.exists()
    assert any("could not be removed from USB stick (Read-only file system)" in words for words in console.said)


def test_a_bad_claim_is_told_once_and_a_good_one_taken_after_it(console: Console, stick: Path) -> None:
    (stick / "sluice-claim.yaml").write_bytes(b"version: 1\ngateway: X\n")

    def mended() -> None:
        (stick / "sluice-claim.yaml").write_bytes(text())

    console.then = [lambda: None, lambda: None, mended]
    console.provisioner().scan(console.pause)
    told = [words for words in console.said if words.startswith("Not taken")]
    assert len(told) == 1
    assert "sluice-claim.yaml:2:10: error: gateway" in told[0]


def test_a_qr_code_before_a_camera_is_a_claim(console: Console, places: Places) -> None:
    picture = to_qr(read_claim(text(), "c"))
    seen = iter([[("/dev/video0", "https://example.com")], [("/dev/video0", picture)]])
    console.finders = [CameraFinder(lambda: iter(next(seen)))]
    console.then = [lambda: None]
    done = console.provisioner().scan(console.pause)
    assert done.origin == "camera /dev/video0"
    assert any("this QR code is no claim" in words for words in console.said)


def test_a_claim_that_does_not_fit_the_image_changes_nothing(console: Console, places: Places, stick: Path) -> None:
    (stick / "sluice-claim.yaml").write_bytes(text(registry="https://bridge.example:8472"))
    console.then = [
        (stick / "sluice-claim.yaml").unlink,
        lambda: (stick / "sluice-claim.yaml").write_bytes(text()),
    ]
    console.provisioner().scan(console.pause)
    assert any("add it as `registry_root`" in words for words in console.said)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_files_belong_to_the_gateway_and_what_lets_people_in_to_root(places: Places) -> None:
    placing = Placing(places.settings, places.state, Account(54321, 54322))
    placing.prepare(plan(read_claim(text(**whole_claim()), "c"), BASE, origin="stick", image="", now_ns=NOW_NS))
    placing.commit()

    def owner(file: Path) -> tuple[int, int, int]:
        found = file.stat()
        return found.st_uid, found.st_gid, found.st_mode & 0o777

    assert owner(places.config) == (54321, 54322, 0o600)
    assert owner(places.state / "identity") == (54321, 54322, 0o700)
    assert owner(places.state / "identity/claim") == (54321, 54322, 0o600)
    assert owner(places.settings / "secrets/dock-camera") == (54321, 54322, 0o600)
    assert owner(places.settings / "ssh") == (0, 0, 0o755)
    assert owner(places.settings / "ssh/authorized_keys") == (0, 0, 0o644)
    assert owner(places.settings / "network") == (0, 0, 0o755)


def test_a_provisioned_device_is_left_alone_unless_asked(console: Console, stick: Path) -> None:
    places = console.places
    (stick / "sluice-claim.yaml").write_bytes(text(**whole_claim()))
    console.provisioner().scan(console.pause)
    before = places.config.read_bytes()
    with pytest.raises(AlreadyProvisionedError):
        console.provisioner().scan(console.pause)
    offer = Offer("stick", text(gateway="dock-8"), lambda: "")
    with pytest.raises(AlreadyProvisionedError, match="--replace"):
        console.provisioner().apply(offer, offer.claim())
    assert places.config.read_bytes() == before
    console.provisioner().apply(offer, offer.claim(), replace=True)
    record = read_provisioned(places)
    assert record is not None
    assert record.gateway == "dock-8"


def test_a_claim_that_replaces_another_takes_its_keys_with_it(console: Console, stick: Path) -> None:
    (stick / "sluice-claim.yaml").write_bytes(text(**whole_claim()))
    console.provisioner().scan(console.pause)
    left = console.places.settings
    assert (left / "ssh/authorized_keys").exists()
    offer = Offer("stick", text(gateway="dock-8"), lambda: "")
    console.provisioner().apply(offer, offer.claim(), replace=True)
    for stale in ("ssh/authorized_keys", "secrets/dock-camera", "network/10-sluice-0.network", "timesyncd.conf"):
        assert not (left / stale).exists()


def test_serial_numbers_and_addresses_tell_devices_apart(tmp_path: Path) -> None:
    sysfs = tmp_path / "sys"
    for name, content in {
        "class/dmi/id/product_serial": "SN-0042\n",
        "class/dmi/id/board_serial": "To be filled by O.E.M.\n",
        "class/net/en0/address": "52:54:00:12:34:56\n",
        "class/net/lo/address": "00:00:00:00:00:00\n",
        "class/net/veth0/address": "52:54:00:99:99:99\n",
    }.items():
        (sysfs / name).parent.mkdir(parents=True, exist_ok=True)
        (sysfs / name).write_text(content)
    (sysfs / "class/net/en0/device").mkdir()
    tree = tmp_path / "device-tree"
    tree.mkdir()
    (tree / "serial-number").write_text("1000000abc\0")
    assert identifiers_of(sysfs, tree) == {"SN-0042", "52:54:00:12:34:56", "1000000abc"}


# ---- the power goes ------------------------------------------------------------------------------

needs_strace = pytest.mark.skipif(bool(kills.missing()), reason=kills.missing())


def begin(root: Path) -> Places:
    shutil.rmtree(root, ignore_errors=True)
    places = device(root)
    (root / "stick").mkdir()
    (root / "stick/sluice-claim.yaml").write_bytes(text(ssh=[SSH_KEY], secrets={"dock-camera": "s3cret"}))
    return places


def everything(root: Path) -> dict[str, bytes]:
    data = root / "data"
    return {str(file.relative_to(data)): file.read_bytes() for file in data.rglob("*") if file.is_file()}


def started_again(root: Path) -> None:
    """What the next start does; the stick may still be there."""
    console = Console(Places.below(root), [FolderFinder(root / "stick", "stick")])
    try:
        console.provisioner().scan(console.pause)
    except AlreadyProvisionedError:
        return


def points(way: str, root: Path, calls: tuple[str, ...], step: int = 1) -> Iterator[str]:
    """Begin anew, kill in front of the n-th call, and yield; until one gets through."""
    command = [sys.executable, str(VICTIM), way, str(root)]
    for call in calls:
        for number in range(1, 80, step):
            begin(root)
            if not kills.run_killed_at(command, call, number):
                break
            yield f"{call} {number}"


def all_comes_through(root: Path, calls: tuple[str, ...], step: int = 1) -> tuple[int, int]:
    """Kill at each point and start again; returns how many points there were, and how many left no configuration."""

    def committed() -> dict[str, bytes]:
        return {name: content for name, content in everything(root).items() if "/.claim" not in name}

    begin(root)
    started_again(root)
    whole = committed()
    assert whole
    killed = unprovisioned = 0
    for point in points("scan", root, calls, step):
        killed += 1
        if Places.below(root).config.exists():  # then everything that it names is there too
            assert committed() == whole, point
        else:
            unprovisioned += 1
        started_again(root)
        assert committed() == whole, point
    return killed, unprovisioned


@needs_strace
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_before_any_rename_the_next_start_has_the_whole_claim(tmp_path: Path) -> None:
    killed, unprovisioned = all_comes_through(tmp_path / "device", ("rename",))
    assert killed >= 6
    assert unprovisioned >= 6


@needs_strace
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_before_any_call_that_changes_the_disk_the_next_start_has_the_whole_claim(tmp_path: Path) -> None:
    killed, _ = all_comes_through(tmp_path / "device", (*kills.DURABLE_CALLS, "write", "fchmod"))
    assert killed > 60


@needs_strace
@pytest.mark.timeout(300)
def test_without_these_steps_a_kill_would_leave_a_gateway_without_its_code(tmp_path: Path) -> None:
    """The control: erased first, written in place, the configuration before what it names."""
    root = tmp_path / "device"
    harmed = []
    for point in points("careless", root, ("rename",)):
        places = Places.below(root)
        claimed = (places.state / "identity/claim").exists()
        if not claimed and not (root / "stick/sluice-claim.yaml").exists():
            harmed.append(point)
    assert harmed


def test_a_claim_that_was_applied_before_the_power_went_is_erased_after_it(console: Console, stick: Path) -> None:
    (stick / "sluice-claim.yaml").write_bytes(text())
    provisioner = console.provisioner()
    (offer,) = FolderFinder(stick, "USB stick").offers()
    provisioner.placing.prepare(plan(offer.claim(), BASE, origin=offer.origin, image="", now_ns=NOW_NS))
    assert (stick / "sluice-claim.yaml").exists()
    done = console.provisioner().scan(console.pause)
    assert done.gateway == "dock-7"
    assert not (stick / "sluice-claim.yaml").exists()
    assert json.loads(console.places.provisioned.read_text())["gateway"] == "dock-7"


def test_another_claim_is_not_erased_by_that(console: Console, stick: Path) -> None:
    (stick / "sluice-claim.yaml").write_bytes(text(gateway="dock-9", code=CODE.replace("mnbv", "aaaa")))
    files = plan(read_claim(text(), "c"), BASE, origin="stick", image="", now_ns=NOW_NS)
    console.provisioner().placing.prepare(files)
    console.provisioner().scan(console.pause)
    assert (stick / "sluice-claim.yaml").exists()


def test_nothing_that_is_no_claim_becomes_one() -> None:
    with pytest.raises(ClaimError):
        Offer("camera", "SLUICE1:", lambda: "").claim()
