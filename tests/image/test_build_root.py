"""What is laid over the root, what a release says of itself, and what a device takes."""

import itertools
import json
import os
import runpy
import shutil
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gateway.osupdate.versions import is_below
from gateway.vault import policy
from image.builder import bundle, disk, layers
from image.builder.approve import approvals
from image.builder.boards import Part, check_vendor, load, size
from image.builder.build import cmdline
from image.builder.chroot import Tree
from image.builder.errors import BuildError, MissingError
from image.builder.progress import Progress
from image.builder.release import Release, of_repository
from image.builder.verity import Root

REPO = Path(__file__).parents[2]
IMAGE = REPO / "image"
RELEASE = Release("1.4.0", "abc", 1_700_000_000, "1.2.0", 3)
BOARD = load(IMAGE, "uefi-amd64")


def test_an_overlay_gets_fixed_modes_whatever_the_umask_of_the_checkout_was(tmp_path: Path) -> None:
    source, root = tmp_path / "overlay", tmp_path / "root"
    (source / "etc").mkdir(parents=True)
    (source / "etc/plain").write_text("size=@ROOT@ mail@example.com")
    (source / "etc/plain").chmod(0o600)
    (source / "etc/tool").write_text("#!/bin/sh\n")
    (source / "etc/tool").chmod(0o700)
    root.mkdir()
    layers.overlay(source, root, {"ROOT": "1"})
    assert stat.S_IMODE((root / "etc/plain").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "etc/tool").stat().st_mode) == 0o755
    assert (root / "etc/plain").read_text() == "size=1 mail@example.com"


def test_all_sizes_of_the_definitions_on_the_device_are_filled_in(tmp_path: Path) -> None:
    layers.overlay(IMAGE / "overlay/usr/lib/repart.d", tmp_path, disk.sizes(BOARD))
    texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert not any("@" in text for text in texts.values())
    # Without an upper bound the last slot would take what a larger disk has.
    assert all("SizeMaxBytes=" in texts[name] for name in ("20-root-a.conf", "30-root-b.conf"))
    assert all("Encrypt=tpm2" in texts[name] for name in ("40-outbox.conf", "50-data.conf"))


def test_no_password_opens_the_image_and_no_program_changes_its_user(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc/shadow").write_text("root:$y$j9T$secret:19675:0:99999:7:::\nsshd:!*:20000::::::\n")
    (root / "usr/bin/su").write_text("")
    (root / "usr/bin/su").chmod(0o4755)
    assert layers.setuid_programs(root) == ["usr/bin/su"]
    layers.clean(root, 86400 * 100)
    assert (root / "etc/shadow").read_text() == "root:*:100:0:99999:7:::\nsshd:*:100::::::\n"
    assert layers.setuid_programs(root) == []
    assert (root / "etc/machine-id").read_text() == ""


def test_the_service_that_blesses_whatever_boots_is_masked() -> None:
    # It would call a broken slot good; tests/image/test_build_bootchooser.py shows what follows.
    assert "systemd-bless-boot.service" in layers.MASKED


def test_ssh_and_consoles_do_not_start_by_themselves() -> None:
    assert "ssh.service" in layers.DISABLED
    units = IMAGE / "overlay/usr/lib/systemd/system"
    for getty in ("getty@.service.d", "serial-getty@.service.d"):
        assert "ConditionKernelCommandLine=sluice.debug-console" in (units / getty / "10-sluice.conf").read_text()
    assert "sluice.debug-console" not in " ".join(BOARD.cmdline)


def test_rauc_asks_the_own_back_end_and_takes_verity_bundles_alone() -> None:
    conf = layers.system_conf(BOARD)
    assert "compatible=sluice-uefi-amd64" in conf
    assert "bootloader-custom-backend=/usr/lib/sluice/bootchooser\n" in conf
    assert "bundle-formats=verity" in conf
    assert "bootchooser-board" in layers.system_conf(load(IMAGE, "coral-devboard"))


def test_only_root_marks_slots_and_the_gateway_may_install() -> None:
    text = (IMAGE / "overlay/usr/share/dbus-1/system.d/de.pengutronix.rauc.conf").read_text()
    gateway = text.split('<policy user="sluice">')[1].split("</policy>")[0]
    assert 'send_member="InstallBundle"' in gateway
    assert "Mark" not in gateway
    assert 'context="default"' not in text


def test_each_slot_names_itself_and_its_root_hash_in_what_is_measured() -> None:
    root = Root(Path("x"), "ab" * 32, 4096, 8192)
    a, b = (cmdline(BOARD, root, slot) for slot in "ab")
    assert "rauc.slot=a" in a
    assert f"roothash={'ab' * 32}" in b
    assert set(a) ^ set(b) == {
        f"{key}{slot}"
        for slot in "ab"
        for key in (
            "rauc.slot=",
            "systemd.verity_root_data=/dev/disk/by-partlabel/root-",
            "systemd.verity_root_hash=/dev/disk/by-partlabel/root-",
        )
    }
    assert "panic=10" in a


class HostTools(Tree):
    """The programs of this machine in place of those of a tools tree."""

    def run(self, argv: Sequence[str | Path], binds: Mapping[Path, str] | None = None) -> None:
        shown = {target: str(source) for source, target in (binds or {}).items()}
        subprocess.run([shown.get(str(word), str(word)) for word in argv], check=True)


def test_a_package_of_a_vendor_that_still_names_lib_leaves_the_link_in_place(tmp_path: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    package, root = tmp_path / "package", tmp_path / "root"
    (package / "lib/modules/5.15.0-tegra").mkdir(parents=True)
    (package / "lib/modules/5.15.0-tegra/modules.order").write_text("")
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(
        "Package: nvidia-l4t-kernel\nVersion: 1\nArchitecture: arm64\nMaintainer: n <n@example.com>\nDescription: x\n"
    )
    file = tmp_path / "kernel.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", package, file], check=True, capture_output=True)
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    part = Part("kernel.deb", "a kernel", "somewhere")
    program = Part("nvbootctrl", "a program", "somewhere", install="/usr/sbin/nvbootctrl")
    (tmp_path / "nvbootctrl").write_bytes(b"ELF")
    layers.vendor(root, {part: file, program: tmp_path / "nvbootctrl"}, HostTools(root, Progress(tmp_path / "log")))
    assert (root / "lib").is_symlink()
    assert (root / "usr/lib/modules/5.15.0-tegra/modules.order").is_file()
    assert os.access(root / "usr/sbin/nvbootctrl", os.X_OK)
    # The control: what the plain way does.
    subprocess.run(["dpkg-deb", "--extract", file, root], check=True)
    assert not (root / "lib").is_symlink()


def test_a_boot_loader_lies_before_all_file_systems_and_is_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    coral = load(IMAGE, "coral-devboard")
    part = next(each for each in coral.vendor if each.at)
    content = b"U-Boot" + bytes(range(256))
    (tmp_path / part.path).write_bytes(content)
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(1 << 20))
    disk.write_raw(raw, check_vendor(coral, tmp_path))
    assert raw.read_bytes()[33 << 10 :].startswith(content)
    # The file systems begin behind its environment, which the device's own tool has at the same place.
    place, length = (int(word, 16) for word in (coral.folder / "overlay/etc/fw_env.config").read_text().split()[-2:])
    assert size(part.before) == place
    assert place + length <= (1 << 20) + coral.partitions.loader
    (tmp_path / part.path).write_bytes(content + bytes(4 << 20))
    with pytest.raises(MissingError, match="does not fit"):
        check_vendor(coral, tmp_path)


def test_the_device_tree_is_the_vendors_else_that_of_debians_kernel(tmp_path: Path) -> None:
    coral = load(IMAGE, "coral-devboard")
    part = next(each for each in coral.vendor if each.path.endswith(".dtb"))
    root, boot = tmp_path / "root", tmp_path / "boot"
    boot.mkdir()
    with pytest.raises(BuildError, match=r"imx8mq-phanbell\.dtb"):
        layers.device_tree(root, coral.vendor, {}, boot)
    of_debian = root / "usr/lib/linux-image-6.12.1-arm64/freescale/imx8mq-phanbell.dtb"
    of_debian.parent.mkdir(parents=True)
    of_debian.write_bytes(b"debian")
    found = layers.device_tree(root, coral.vendor, {}, boot)
    assert found is not None
    assert found.read_bytes() == b"debian"
    own = tmp_path / "own.dtb"
    own.write_bytes(b"own")
    assert layers.device_tree(root, coral.vendor, {part: own}, boot) == own
    assert layers.device_tree(root, BOARD.vendor, {}, boot) is None


def test_an_image_brings_all_steps_of_the_counter_for_devices_that_skipped_releases() -> None:
    made = approvals("1.4.0", 3, {"a": "11" * 32, "b": "22" * 32}, {"12": "00" * 32})
    assert sorted(made) == [
        "a.policy.json", "advance-1.policy.json", "advance-2.policy.json", "b.policy.json", "first.policy.json",
    ]  # fmt: skip
    state = made["b.policy.json"]
    assert isinstance(state, policy.BootState)
    assert state.counter_at_most == 3
    assert state.pcrs == {"11": "22" * 32, "12": "00" * 32}


def test_the_first_generation_moves_no_counter() -> None:
    assert "advance-1.policy.json" not in approvals("1.0.0", 1, {"a": "11" * 32}, {})


def test_a_bundle_says_what_devices_and_bridge_ask_of_it() -> None:
    text = bundle.manifest(BOARD, RELEASE, Path("root.img"), {"a": "11" * 32, "b": "22" * 32})
    assert "[meta.sluice]\nversion=1.4.0\nfloor=1.2.0\ncounter=3\n" in text
    assert "format=verity" in text
    assert "hooks=post-install" in text
    assert f"pcr11-a={'11' * 32}\npcr11-b={'22' * 32}\n" in text


def asked_to_install(folder: Path, **meta: str | None) -> subprocess.CompletedProcess[str]:
    """Run root's own check of a bundle whose manifest says this in [meta.sluice]; None is not said."""
    release, own = folder / "release.json", folder / "pre-install"
    release.write_text(json.dumps(RELEASE.document(BOARD)))
    script = (IMAGE / "overlay/usr/lib/sluice/pre-install").read_text()
    own.write_text(script.replace("/usr/lib/sluice/release.json", str(release)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAUC_")}
    environment |= {f"RAUC_META_SLUICE_{key.upper()}": value for key, value in meta.items() if value is not None}
    return subprocess.run([sys.executable, own], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("1.2.0", 0),
        ("1.10.0", 0),
        ("2.0", 0),
        ("1.2", 0),
        ("1.3.0-rc.1", 0),
        ("1.1.9", 20),
        ("1.2.0-rc.1", 20),
        ("nonsense", 21),
        ("1.2.0-", 21),
        (None, 21),
    ],
)
def test_a_device_takes_no_bundle_below_its_floor(version: str | None, status: int, tmp_path: Path) -> None:
    """RAUC passes the exit status on; what the gateway makes of it: tests/gateway/osupdate/test_rauc.py."""
    done = asked_to_install(tmp_path, version=version, target="uefi-amd64")
    assert done.returncode == status, done.stderr
    assert not status or "not installed" in done.stderr


@pytest.mark.parametrize("target", ["coral-devboard", "", None])
def test_a_device_takes_no_bundle_of_another_board_although_rauc_was_told_to_ignore_that(
    target: str | None, tmp_path: Path
) -> None:
    """Whoever may install by D-Bus may say `ignore-compatible`."""
    done = asked_to_install(tmp_path, version="1.5.0", target=target)
    assert done.returncode == 23, done.stderr
    assert "not uefi-amd64" in done.stderr


def test_root_has_the_same_order_of_versions_as_the_gateway_that_it_does_not_believe() -> None:
    own = runpy.run_path(str(IMAGE / "overlay/usr/lib/sluice/pre-install"))
    versions = ["0.9", "1.2.0-alpha", "1.2.0-alpha.1", "1.2.0-alpha.beta", "1.2.0-beta.2", "1.2.0-beta.11"]
    versions += ["1.2.0-rc.1", "1.2.0", "1.2", "1.2.0+build.7", "1.2.1-rc.1", "1.10.0", "2"]
    versions += ["nonsense", "1.2.0-", "1..2", ""]
    for version, floor in itertools.product(versions, [each for each in versions if each]):
        try:
            wanted = own["BELOW_FLOOR"] if is_below(version, floor) else 0
        except ValueError:
            wanted = own["NO_VERSION"]
        assert own["objection"](version, floor)[0] == wanted, (version, floor)


@pytest.mark.parametrize(("state", "status"), [("good", 0), ("bad", 22), ("", 0)])
def test_nothing_is_installed_over_the_last_good_slot_while_the_running_one_is_on_trial(
    state: str, status: int, tmp_path: Path
) -> None:
    release, chooser, own = tmp_path / "release.json", tmp_path / "bootchooser", tmp_path / "pre-install"
    release.write_text(json.dumps(RELEASE.document(BOARD)))
    chooser.write_text(f'#!/bin/sh\n[ "$*" = "get-state b" ] && echo {state}\n')
    chooser.chmod(0o755)
    script = (IMAGE / "overlay/usr/lib/sluice/pre-install").read_text()
    own.write_text(script.replace("/usr/lib/sluice/", f"{tmp_path}/"))
    environment = {**os.environ, "RAUC_META_SLUICE_VERSION": "1.5.0", "RAUC_CURRENT_BOOTNAME": "b"}
    environment["RAUC_META_SLUICE_TARGET"] = "uefi-amd64"
    done = subprocess.run([sys.executable, own], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert ("not been marked good" in done.stderr) is (status != 0)


def test_a_script_for_u_boot_carries_both_checksums() -> None:
    script = disk.uboot_script(b"echo hello\n", 1_700_000_000)
    magic, checksum, _, size, _, _, content = struct.unpack(">IIIIIII", script[:28])
    assert magic == 0x27051956
    assert size == len(script) - 64
    assert content == zlib.crc32(script[64:])
    assert checksum == zlib.crc32(script[:4] + bytes(4) + script[8:64])


def test_a_release_follows_from_the_repository_and_what_is_given_takes_precedence() -> None:
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout")
    found = of_repository(REPO, None, None, None)
    assert found.epoch > 1_600_000_000
    assert len(found.commit.removesuffix("-dirty")) == 40
    given = of_repository(REPO, "9.9.9", "9.0.0", 7)
    assert (given.version, given.floor, given.generation) == ("9.9.9", "9.0.0", 7)


@pytest.mark.parametrize(
    "script", sorted(path for path in IMAGE.rglob("*") if path.is_file() and path.stat().st_mode & 0o100)
)
def test_every_script_of_the_image_can_be_parsed(script: Path) -> None:
    first = script.read_text().splitlines()[0]
    if "python" in first:
        compile(script.read_text(), str(script), "exec")
    else:
        shell = "bash" if "bash" in first else "sh"
        done = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
