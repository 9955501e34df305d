"""What is worked out of a kernel image must be what the TPM of the device comes to."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gateway.vault import policy
from image.builder import initrd, uki
from image.builder.boards import load
from image.builder.chroot import Tree
from image.builder.errors import BuildError
from image.builder.progress import Progress


def pe(contents: dict[str, bytes]) -> bytes:
    """A PE image with nothing but sections; each is padded in the file, as linkers do."""
    start = 0x200 + 0x200
    table, body = b"", b""
    for name, content in contents.items():
        raw = content.ljust(-(-len(content) // 512) * 512, b"\xcc")
        table += name.encode().ljust(8, b"\0") + struct.pack("<IIII", len(content), 0x1000, len(raw), start + len(body))
        table += bytes(16)
        body += raw
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(contents), 0, 0, 0, 0, 0)
    return (head + coff + table).ljust(start, b"\0") + body


PARTS = {".text": b"stub", ".initrd": b"initrd", ".linux": b"kernel", ".cmdline": b"rauc.slot=a", ".pcrsig": b"{}"}


def extended(value: bytes, *data: bytes) -> bytes:
    for each in data:
        value = hashlib.sha256(value + hashlib.sha256(each).digest()).digest()
    return value


def test_sections_are_as_long_as_in_memory_and_not_as_padded_in_the_file() -> None:
    assert uki.sections(pe(PARTS)) == PARTS


def test_pcr_11_holds_the_sections_in_the_order_of_the_stub_and_then_the_phases() -> None:
    expected = extended(
        bytes(32),
        b".linux\0", b"kernel", b".cmdline\0", b"rauc.slot=a", b".initrd\0", b"initrd",
        b"enter-initrd", b"leave-initrd",
    )  # fmt: skip
    assert uki.pcr11(PARTS, "enter-initrd:leave-initrd") == expected.hex()


@pytest.mark.parametrize("section", [".linux", ".initrd", ".cmdline"])
def test_one_changed_byte_in_what_is_measured_changes_the_register(section: str) -> None:
    changed = {**PARTS, section: PARTS[section] + b"!"}
    assert uki.pcr11(changed, uki.GATEWAY_PHASE) != uki.pcr11(PARTS, uki.GATEWAY_PHASE)


def test_the_signatures_in_the_image_do_not_change_what_they_sign() -> None:
    changed = {**PARTS, ".pcrsig": b'{"sha256": []}'}
    assert uki.pcr11(changed, uki.GATEWAY_PHASE) == uki.pcr11(PARTS, uki.GATEWAY_PHASE)


def test_each_phase_has_a_register_of_its_own_so_a_shell_in_the_initrd_is_not_the_gateway() -> None:
    assert len({uki.pcr11(PARTS, phase) for phase in uki.PHASES}) == len(uki.PHASES)


class Heard(Progress):
    """Runs nothing, and keeps what would have been run."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.commands: list[list[str]] = []

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.commands.append([str(word) for word in argv])


def test_the_initrd_measures_its_own_phase_without_which_the_disk_opens_in_none(tmp_path: Path) -> None:
    signed = {uki.pcr11(PARTS, phase) for phase in uki.PHASES}
    unmeasured = (":".join(phase.split(":")[1:]) for phase in uki.PHASES if ":" in phase)
    assert signed.isdisjoint(uki.pcr11(PARTS, phase) for phase in unmeasured), "the control"
    modules = tmp_path / "root/usr/lib/dracut/modules.d"
    for name in ("00systemd", "01systemd-pcrphase", "98systemd-cryptsetup"):
        (modules / name).mkdir(parents=True)
    kernel = tmp_path / "root/usr/lib/modules/6.12"
    kernel.mkdir(parents=True)
    (kernel / "modules.dep").write_text("")
    heard = Heard(tmp_path / "log")
    initrd.build(tmp_path / "root", "6.12", tmp_path / "initrd", Tree(tmp_path / "tools", heard), epoch=0)
    (dracut,) = [words for words in heard.commands if "dracut" in words]
    assert "systemd-pcrphase" in dracut[dracut.index("--add") + 1].split()
    assert "systemd-pcrphase" not in dracut[dracut.index("--omit") + 1].split()


MODULES = {
    "kernel/fs/erofs/erofs.ko.xz": ("kernel/lib/libcrc32c.ko.xz",),
    "kernel/fs/ext4/ext4.ko.xz": ("kernel/fs/jbd2/jbd2.ko.xz", "kernel/lib/libcrc32c.ko.xz"),
    "kernel/fs/jbd2/jbd2.ko.xz": (),
    "kernel/lib/libcrc32c.ko.xz": (),
    "kernel/drivers/md/dm-verity.ko.xz": ("kernel/drivers/md/dm-bufio.ko.xz",),
    "kernel/drivers/md/dm-bufio.ko.xz": (),
    "kernel/drivers/md/raid1.ko.xz": (),
    "kernel/drivers/hid/hid.ko": (),
    "kernel/drivers/iio/hid-sensor.ko": ("kernel/drivers/hid/hid.ko",),
    "kernel/drivers/ata/ahci.ko": (),
    "kernel/drivers/ata/pata_via.ko": (),
}


def test_the_initrd_goes_without_what_opens_no_root_and_keeps_what_its_drivers_need() -> None:
    without = ("kernel/fs", "kernel/drivers/md", "kernel/drivers/hid", "kernel/drivers/ata/pata_*")
    gone = initrd.left_out(MODULES, without, ("erofs", "dm_verity"))
    assert {path.split("/")[-1].partition(".")[0] for path in gone} == {
        "ext4", "jbd2", "raid1", "hid", "hid-sensor", "pata_via",
    }  # fmt: skip
    # The control: by the patterns alone the root could not be read.
    assert "kernel/fs/erofs/erofs.ko.xz" in initrd.left_out(MODULES, without, ())
    assert initrd.left_out(MODULES, (), ()) == frozenset()


class Emptied(Heard):
    """Notes which modules dracut would see."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.seen: set[str] = set()

    def run(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        super().run(argv, env=env, cwd=cwd)
        words = self.commands[-1]
        if "dracut" in words:
            shown = Path(words[words.index("/usr/lib/modules/6.12") - 1])
            self.seen = {path.name for path in shown.rglob("*.ko*")}


def test_dracut_sees_only_the_modules_that_may_be_in_the_initrd_and_the_root_keeps_all(tmp_path: Path) -> None:
    kernel = tmp_path / "root/usr/lib/modules/6.12"
    (tmp_path / "root/usr/lib/dracut/modules.d").mkdir(parents=True)
    for path in MODULES:
        (kernel / path).parent.mkdir(parents=True, exist_ok=True)
        (kernel / path).write_text("")
    (kernel / "modules.dep").write_text("".join(f"{path}: {' '.join(needs)}\n" for path, needs in MODULES.items()))
    heard = Emptied(tmp_path / "log")
    without = load(Path(__file__).parents[2] / "image", "uefi-amd64").initrd_without
    tools = Tree(tmp_path / "tools", heard)
    initrd.build(tmp_path / "root", "6.12", tmp_path / "initrd", tools, epoch=0, without=without)
    assert heard.seen == {"erofs.ko.xz", "libcrc32c.ko.xz", "dm-verity.ko.xz", "dm-bufio.ko.xz", "ahci.ko"}
    assert {str(path.relative_to(kernel)) for path in kernel.rglob("*.ko*")} == MODULES.keys()


@pytest.mark.parametrize(("target", "is_less"), [("uefi-amd64", True), ("uefi-arm64", True), ("jetson", False)])
def test_what_a_vendors_kernel_boots_with_is_left_to_dracut(target: str, *, is_less: bool) -> None:
    assert bool(load(Path(__file__).parents[2] / "image", target).initrd_without) is is_less


def test_the_policy_is_the_one_that_the_vault_computes() -> None:
    value = uki.pcr11(PARTS, uki.GATEWAY_PHASE)
    assert uki.policy_digest(value) == policy.with_pcrs(policy.ZERO, {11: bytes.fromhex(value)}).hex()


def test_what_is_no_pe_image_is_refused() -> None:
    with pytest.raises(BuildError, match="no PE image"):
        uki.sections(b"MZ" + bytes(200))
