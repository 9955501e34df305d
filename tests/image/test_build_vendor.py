"""Boards whose vendors supply parts, built with stand-ins for those: what becomes of each part.

Nothing here is booted. Needs root; the packages of an arm64 root are emulated, so without a cache each takes long:
`image/build coral-devboard --vendor FOLDER` fills it.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hil.rig.disk import find, partitions
from image.builder import boards, debian
from image.builder.chroot import Tree
from image.builder.progress import Progress

REPO = Path(__file__).parents[2]
IMAGE = REPO / "image"
CACHE = Path(os.environ.get("SLUICE_IMAGE_CACHE") or REPO / "var/image/cache")

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.geteuid() != 0, reason="building an image needs root"),
]

DTB = b"\xd0\x0d\xfe\xed" + struct.pack(">I", 64) + b" stand-in for a device tree".ljust(56)
U_BOOT = b"stand-in for U-Boot 2024.01" + bytes(range(256)) * 4096  # 1 MiB, as large as the real one
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, 183) + b" stand-in for a program".ljust(44)


def cached(target: str) -> Path:
    """The root tar of a target; without it these tests would take an hour."""
    board = boards.load(IMAGE, target)
    source = debian.Archive((), "", CACHE, offline=True)
    tar = debian.root_place(source, board.packages, board.architecture)
    if not tar.is_file():
        pytest.skip(f"{tar} is not there: image/build {target} --vendor FOLDER makes it")
    return tar


def build(target: str, vendor: Path, out: Path, keys: Path) -> dict[str, Any]:
    argv: list[str | Path] = [sys.executable, "-B", REPO / "image/build", target, "--vendor", vendor, "--json"]
    argv += ["--keys", keys, "--output", out, "--offline"]
    environment = {**os.environ, "SLUICE_IMAGE_CACHE": str(CACHE)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(scope="module")
def keys() -> Path:
    folder = REPO / "var/image/keys"
    if not (folder / "db.key").is_file():
        pytest.skip(f"{folder} has no keys: the first build makes them")
    return folder


def tools(log: Path) -> Tree:
    return Tree(next(CACHE.glob("tools-*[0-9a-f]")), Progress(log))


def in_root(image: Path, path: str, scratch: Path) -> str:
    """What erofs says of a path in a packed root."""
    return tools(scratch / "log").capture(
        ["dump.erofs", f"--path={path}", "/run/b/root.img"], {image: "/run/b/root.img"}
    )


def bundle_root(bundle: Path, scratch: Path) -> Path:
    out = scratch / "unpacked"
    tools(scratch / "log").run(
        ["unsquashfs", "-quiet", "-no-progress", "-dest", "/run/b/out/bundle", "/run/b/in.raucb"],
        {bundle: "/run/b/in.raucb", scratch: "/run/b/out"},
    )
    (scratch / "bundle").rename(out)
    return out


def test_the_coral_board_gets_u_boot_its_script_and_debians_device_tree(tmp_path: Path, keys: Path) -> None:
    cached("coral-devboard")
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    (vendor / "u-boot.imx").write_bytes(U_BOOT)
    (vendor / "libedgetpu.so.1").write_bytes(ELF + b" edgetpu")
    document = build("coral-devboard", vendor, tmp_path / "out", keys)
    disk = tmp_path / "out/disk.raw"
    found = partitions(disk)
    assert set(found) == {"loader", "ESP", "root-a", "root-b"}
    with disk.open("rb") as stream:
        stream.seek(33 << 10)
        assert stream.read(len(U_BOOT)) == U_BOOT
    # U-Boot keeps its environment at 4 MiB: no file system may lie there.
    loader = found["loader"]
    assert loader.offset <= 4 << 20 < (4 << 20) + 0x1000 <= loader.offset + loader.size
    esp = found["ESP"]
    script = (IMAGE / "boards/coral-devboard/boot.cmd").read_bytes()[:60]
    assert any(esp.offset <= at < esp.offset + esp.size for at in find(disk, [script])[script])
    unpacked = bundle_root(tmp_path / "out/bundle.raucb", tmp_path)
    assert {file.name for file in unpacked.iterdir()} >= {"root.img", "a.efi", "b.efi", "hook", "manifest.raucm"}
    assert b"fsl,imx8mq" in (unpacked / "a.efi").read_bytes()  # of the device tree in the kernel image
    told = in_root(unpacked / "root.img", "/usr/lib/aarch64-linux-gnu/libedgetpu.so.1", tmp_path)
    assert "regular file" in told
    assert set(document["variants"]["shipping"]["pcr11"]) == {"a", "b"}
    bill = json.loads((tmp_path / "out/sbom.cdx.json").read_text())
    assert {each["name"] for each in bill["components"] if each["type"] == "file"} == {"u-boot.imx", "libedgetpu.so.1"}


def kernel_package(folder: Path) -> Path:
    """A kernel of Debian in the layout of L4T's package: /lib instead of /usr/lib, and the kernel is called Image."""
    archive = next(iter(sorted((CACHE / "debs").glob("linux-image-[0-9]*_arm64.deb"))), None)
    if archive is None:
        pytest.skip(f"no kernel for arm64 in {CACHE}/debs")
    content, layout = folder / "debian", folder / "l4t"
    subprocess.run(["dpkg-deb", "--extract", archive, content], check=True)
    (version,) = (path.name for path in content.glob("usr/lib/modules/*"))
    (layout / "boot").mkdir(parents=True)
    (layout / "lib/modules").mkdir(parents=True)
    shutil.copyfile(content / f"boot/vmlinuz-{version}", layout / "boot/Image")
    shutil.move(content / "usr/lib/modules" / version, layout / "lib/modules" / version)
    (layout / "DEBIAN").mkdir()
    (layout / "DEBIAN/control").write_text(
        "Package: nvidia-l4t-kernel\nVersion: 5.15.148\nArchitecture: arm64\n"
        "Maintainer: nobody <nobody@example.com>\nDescription: stand-in\n"
    )
    made = folder / "kernel.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", layout, made], check=True)
    shutil.rmtree(content)
    shutil.rmtree(layout)
    return made


def test_the_jetson_gets_what_nvidias_flashing_tool_takes(tmp_path: Path, keys: Path) -> None:
    cached("jetson")
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    kernel_package(vendor)
    (vendor / "tegra.dtb").write_bytes(DTB)
    (vendor / "nvbootctrl").write_bytes(ELF)
    document = build("jetson", vendor, tmp_path / "out", keys)
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} >= {
        "bundle.raucb", "root.img", "initrd", "Image", "tegra.dtb", "a.cmdline", "b.cmdline", "sbom.cdx.json",
        "manifest.json",
    }  # fmt: skip
    assert (out / "tegra.dtb").read_bytes() == DTB
    root_hash = document["variants"]["shipping"]["root_hash"]
    for slot in "ab":
        words = (out / f"{slot}.cmdline").read_text().split()
        assert f"roothash={root_hash}" in words
        assert f"rauc.slot={slot}" in words
        assert "systemd.import_credentials=no" in words
    assert "Access: 0755" in in_root(out / "root.img", "/usr/sbin/nvbootctrl", tmp_path)
    # The package names /lib, which is a link in the root, and has to stay one: the loader of all programs is below it.
    assert "symlink" in in_root(out / "root.img", "/lib", tmp_path)
    assert "regular file" in in_root(out / "root.img", "/usr/lib/aarch64-linux-gnu/libc.so.6", tmp_path)
    assert {file.name for file in bundle_root(out / "bundle.raucb", tmp_path).iterdir()} >= {"root.img", "a.cmdline"}
