"""The root, laid up from the tar: overlays, the application, what is said of this release, and a clean-up.

Everything written here has fixed owners, modes and order, because the root hash is made of it.
"""

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from image.builder import formats
from image.builder.boards import Board, Part
from image.builder.chroot import Tree
from image.builder.errors import BuildError, MissingError
from image.builder.keys import Keys
from image.builder.progress import Progress
from image.builder.release import Release

ENABLED: Final = (
    "gateway.service", "mosquitto.service", "sluice-activate.service", "sluice-erase.service", "sluice-health.service",
    "sluice-lasted.timer", "sluice-policy.service", "sluice-provision.service", "sluice-reset-scan.service",
    "systemd-networkd.service", "systemd-resolved.service",
    "systemd-timesyncd.service",
)  # fmt: skip
DISABLED: Final = (
    "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "remote-fs.target",
    "ssh.service",
    "systemd-pstore.service",  # sluice-good and -lasted start it: until then the dumps count the panics
)  # fmt: skip
# systemd-bless-boot would call a slot good as soon as it has booted, whatever sluice-health.service finds later.
MASKED: Final = (
    "systemd-bless-boot.service", "systemd-boot-check-no-failures.service", "systemd-firstboot.service",
    "sshd-keygen.service", "ssh.socket", "systemd-pcrlock.socket", "systemd-networkd-wait-online.service",
    "debug-shell.service",
)  # fmt: skip
# It would open SSH on AF_VSOCK and AF_UNIX by itself.
_MASKED_GENERATORS: Final = ("systemd-ssh-generator", "systemd-sysv-generator", "systemd-gpt-auto-generator")

_REMOVED: Final = (
    "boot", "etc/apt", "etc/init.d", "etc/rc0.d", "etc/rc1.d", "etc/rc2.d", "etc/rc3.d", "etc/rc4.d", "etc/rc5.d",
    "etc/rc6.d", "etc/rcS.d", "etc/kernel", "etc/initramfs-tools", "etc/logrotate.d", "etc/cron.daily", "etc/cron.d",
    "etc/machine-id", "etc/hostname", "etc/resolv.conf", "usr/lib/dracut", "usr/bin/dracut", "usr/bin/lsinitrd",
    "usr/lib/systemd/boot", "usr/share/initramfs-tools", "var", "root/.bashrc",
)  # fmt: skip
_DIRECTORIES: Final = ("boot", "data", "efi", "etc/sluice", "var", "proc", "sys", "dev", "run", "tmp", "mnt", "media")

# `dpkg-deb --extract` would put a folder in the place of the link /lib, below which the loader of all programs is.
_UNPACK: Final = (
    'dpkg-deb --fsys-tarfile "$1" | tar --extract --keep-directory-symlink --numeric-owner --directory="$2"'
)


def extract(tar: Path, root: Path, progress: Progress) -> None:
    """Unpack the root tar.

    Raises:
        BuildError: tar failed.
    """
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True, mode=0o755)
    progress.run(
        [
            "tar",
            "--extract",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            f"--file={tar}",
            f"--directory={root}",
        ]
    )


def kernel_version(root: Path) -> str:
    """Return the one kernel of a root."""
    return next(folder.name for folder in sorted((root / "usr/lib/modules").iterdir()) if (folder / "kernel").is_dir())


def drop_modules(root: Path, folders: Iterable[str], tools: Tree) -> None:
    """Take out kernel modules that no gateway needs."""
    version = kernel_version(root)
    for folder in folders:
        shutil.rmtree(root / "usr/lib/modules" / version / folder, ignore_errors=True)
    tools.run(["depmod", "--basedir", "/run/b/root", version], {root: "/run/b/root"})


def overlay(source: Path, root: Path, values: Mapping[str, str] | None = None) -> None:
    """Lay a folder over the root: owned by root, executable if it is executable in the folder.

    Args:
        source: the folder.
        root: laid over.
        values: replacements for `@NAME@` in text.
    """
    for folder, _, files in sorted(os.walk(source)):
        below = Path(folder).relative_to(source)
        _directory(root, below)
        for name in sorted(files):
            if name.endswith(".pyc"):
                continue
            origin, target = Path(folder) / name, root / below / name
            if target.is_symlink() or target.exists():
                target.unlink()
            if origin.is_symlink():
                target.symlink_to(origin.readlink())
                continue
            content = origin.read_bytes()
            if values and b"@" in content:
                content = re.sub(
                    rb"@([A-Z_]+)@", lambda match: values.get(match[1].decode(), match[0].decode()).encode(), content
                )
            target.write_bytes(content)
            target.chmod(0o755 if os.access(origin, os.X_OK) and origin.stat().st_mode & 0o100 else 0o644)


def describe(root: Path, board: Board, release: Release, keys: Keys) -> None:
    """Write what the image says of itself: release, keys that it trusts, RAUC's configuration, name of the system."""
    own, share = root / "usr/lib/sluice", root / "usr/share/sluice"
    for folder in (own, share):
        folder.mkdir(parents=True, exist_ok=True)
    (own / "appliance").write_text(f"{board.compatible}\n")
    (own / "release.json").write_text(json.dumps(release.document(board), indent=2, sort_keys=True) + "\n")
    (own / "tries").write_text(f"{board.tries}\n")
    (share / "rauc-keyring.pem").write_bytes(keys.public("ca.crt"))
    (share / "policy.pem.pub").write_bytes(keys.public("policy.pub"))
    (root / "etc/rauc").mkdir(parents=True, exist_ok=True)
    (root / "etc/rauc/system.conf").write_text(system_conf(board))
    os_release = (root / "usr/lib/os-release").read_text().splitlines()
    kept = [line for line in os_release if not line.startswith(("PRETTY_NAME=", "IMAGE_", "BUILD_ID="))]
    kept += [
        f'PRETTY_NAME="Sluice {release.version} ({board.name})"',
        "IMAGE_ID=sluice",
        f"IMAGE_VERSION={release.version}",
    ]
    (root / "usr/lib/os-release").write_text("\n".join(kept) + "\n")


def system_conf(board: Board) -> str:
    """Return RAUC's system.conf."""
    slots = "".join(
        f"\n[slot.rootfs.{number}]\ndevice=/dev/disk/by-partlabel/root-{slot}\ntype=raw\nbootname={slot}\n"
        for number, slot in enumerate("ab")
    )
    backend = "bootchooser" if board.bootloader == "sdboot" else "bootchooser-board"
    return (
        f"[system]\ncompatible={board.compatible}\nbootloader=custom\nbundle-formats=verity\n"
        "data-directory=/data/rauc\nactivate-installed=true\n"
        f"\n[handlers]\nbootloader-custom-backend=/usr/lib/sluice/{backend}\npre-install=/usr/lib/sluice/pre-install\n"
        # A device whose clock is wrong after a long storage must still be able to take an update.
        "\n[keyring]\npath=/usr/share/sluice/rauc-keyring.pem\nuse-bundle-signing-time=true\n" + slots
    )


def units(root: Path, repo: Path, tools: Tree) -> None:
    """Install the project's units, users and device rules, and say which units start."""
    target = root / "usr/lib/systemd/system"
    for file in sorted((repo / "gateway/units").iterdir()):
        if file.name == "gateway.service" or file.name.startswith("sluice-"):
            shutil.copyfile(file, target / file.name)
    more = [file.name for file in target.glob("sluice-*.path")]
    users = (repo / "gateway/units/sluice.sysusers.conf").read_text()
    own = [line for line in users.splitlines() if not line.startswith(("#", "u sluice-bridge"))]
    wanted = [*own, *(f"g {group} - -" for group in ("gpio", "iio", "apex") if f"g {group} " not in users)]
    (root / "usr/lib/sysusers.d/sluice.conf").write_text("\n".join(wanted) + "\n")
    tools.run(["systemd-sysusers", "--root=/run/b/root"], {root: "/run/b/root"})
    _device_rules(root, repo)
    for verb, names in (("enable", (*ENABLED, *more)), ("disable", DISABLED)):
        tools.run(["systemctl", "--root=/run/b/root", verb, *names], {root: "/run/b/root"})
    own_units = root / "etc/systemd/system"
    for name in MASKED:
        _link(own_units / name, "/dev/null")
    for name in _MASKED_GENERATORS:
        _link(root / "etc/systemd/system-generators" / name, "/dev/null")


def check_modules(version: str, parts: Mapping[Part, Path]) -> None:
    """See that the vendor's kernel modules are for the kernel of this root, which would not load others.

    Raises:
        MissingError: one is not; the message says which kernel is wanted.
    """
    for file in parts.values():
        if file.suffix == ".ko":
            own = formats.module_kernel(file.read_bytes())
            if own != version:
                raise MissingError(
                    f"{file}: built for kernel {own or 'that it does not name'}, and would not be loaded by {version} "
                    "of this image; build it for that one, or take it out of the folder"
                )


def kernel_image(root: Path, version: str) -> Path:
    """Return the kernel: Debian's, or L4T's `Image`.

    Raises:
        BuildError: there is none.
    """
    for file in (root / f"boot/vmlinuz-{version}", root / "boot/Image"):
        if file.is_file():
            return file
    raise BuildError(f"no kernel in /boot of the root for its modules {version}")


def device_tree(root: Path, vendor: Iterable[Part], parts: Mapping[Part, Path], folder: Path) -> Path | None:
    """Return the device tree that goes into the kernel images: the vendor's, else Debian's, else none.

    Raises:
        BuildError: the board takes Debian's, and the kernel has none for it.
    """
    for part in vendor:
        if part.path.endswith(".dtb"):
            if part in parts:
                return parts[part]
            found = sorted(root.glob(part.debian)) if part.debian else []
            if not found:
                raise BuildError(f"no device tree {part.debian} in the root, and none was supplied as {part.path}")
            return Path(shutil.copyfile(found[0], folder / part.path))
    return None


def vendor(root: Path, parts: Mapping[Part, Path], tools: Tree) -> None:
    """Copy the vendor's parts that go into the root; packages are unpacked, and none of their scripts is run.

    Raises:
        BuildError: a package is damaged.
    """
    for part, file in parts.items():
        if file.suffix == ".deb":
            tools.run(
                ["bash", "-euo", "pipefail", "-c", _UNPACK, "bash", "/run/b/part.deb", "/run/b/root"],
                {file: "/run/b/part.deb", root: "/run/b/root"},
            )
        if part.install:
            target = root / part.install.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            target.chmod(0o755 if target.parent.name in {"bin", "sbin"} else 0o644)


def clean(root: Path, epoch: int) -> None:
    """Remove what a device does not need, and what differs from build to build."""
    for path in _REMOVED:
        target = root / path
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
    for path in _DIRECTORIES:
        (root / path).mkdir(mode=0o755, parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text("sluice\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 sluice\n")
    _link(root / "etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    for name in ("vmlinuz", "initrd.img", "vmlinuz.old", "initrd.img.old"):
        (root / name).unlink(missing_ok=True)
    # Device trees of all boards there are; the kernel image has the one that is needed.
    for trees in root.glob("usr/lib/linux-image-*"):
        shutil.rmtree(trees)
    own_units = "usr/lib/systemd/system"
    for pattern in (
        # Of the program that made the initrd, and went with it.
        f"{own_units}/dracut-*",
        f"{own_units}/*.wants/dracut-*",
        "etc/*-",
        "etc/.pwd.lock",
        "etc/ld.so.cache~",
        "etc/ssh/ssh_host_*",
    ):
        for file in root.glob(pattern):
            file.unlink()
    _lock_passwords(root / "etc/shadow", epoch)
    # Nobody but services is on a device, and none of them changes its user by such a program.
    for path in setuid_programs(root):
        file = root / path
        file.chmod(stat.S_IMODE(file.stat().st_mode) & ~0o6000)
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files:
            if name.endswith((".dpkg-old", ".dpkg-dist")):
                (Path(folder) / name).unlink()
        for name in folders:
            if name == "__pycache__" and "/opt/sluice/" in f"{folder}/":
                shutil.rmtree(Path(folder) / name)


def setuid_programs(root: Path) -> list[str]:
    """List what runs with its owner's rights."""
    found = [Path(folder) / name for folder, _, files in os.walk(root) for name in files]
    modes = ((file, file.lstat().st_mode) for file in found)
    return sorted(str(file.relative_to(root)) for file, mode in modes if stat.S_ISREG(mode) and mode & 0o6000)


def _device_rules(root: Path, repo: Path) -> None:
    source = repo / "udev"
    rules = root / "usr/lib/udev/rules.d"
    for file in sorted(source.glob("rules.d/*.rules")):
        shutil.copyfile(file, rules / file.name)
    helpers = {"sluice-iio": "usr/lib/udev/sluice-iio"}
    for name, target in helpers.items():
        if (source / name).is_file():
            shutil.copyfile(source / name, root / target)
            (root / target).chmod(0o755)
    drop_in = source / "50-sluice-devices.conf"
    if drop_in.is_file():
        shutil.copyfile(drop_in, root / "usr/lib/systemd/system/gateway.service.d/50-sluice-devices.conf")
    for kind in ("modprobe.d", "modules-load.d"):
        for file in sorted(source.glob(f"{kind}/*.conf")):
            (root / "usr/lib" / kind).mkdir(exist_ok=True)
            shutil.copyfile(file, root / "usr/lib" / kind / file.name)


def _lock_passwords(shadow: Path, epoch: int) -> None:
    lines = []
    for line in shadow.read_text().splitlines():
        fields = line.split(":")
        # `*` and not `!`: nobody knows a password, but a key for SSH is not refused as that of a locked account.
        fields[1], fields[2] = "*", str(epoch // 86400)
        lines.append(":".join(fields))
    shadow.write_text("\n".join(lines) + "\n")


def _directory(root: Path, below: Path) -> None:
    folder = root / below
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o755)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
