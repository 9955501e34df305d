"""The initrd: the same for all devices of a target, with what opens the root under dm-verity and measures phases."""

import shutil
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from image.builder.chroot import Tree

# Without systemd-pcrphase PCR 11 lacks "enter-initrd", and none of the signed values fits: the TPM gives nothing out.
_MODULES: Final = (
    "systemd",
    "systemd-initrd",
    "systemd-pcrphase",
    "systemd-veritysetup",
    "sluice-tpm2",
    "sluice-panics",
    "kernel-modules",
)
_LEFT_OUT: Final = (
    "brltty", "btrfs", "crypt-gpg", "dmraid", "fido2", "hwdb", "i18n", "iscsi", "lvm", "mdraid", "multipath", "network",
    "nfs", "nvdimm", "pcsc", "pkcs11", "plymouth", "qemu", "resume", "systemd-cryptsetup", "systemd-repart",
    "tpm2-tss", "usrmount",
)  # fmt: skip
_DRIVERS: Final = (
    "erofs", "dm-verity", "dm-mod",
    "virtio_blk", "virtio_pci", "virtio_scsi", "nvme", "ahci", "sd_mod",
    "mmc_block", "sdhci-pci", "sdhci-acpi", "ufshcd-pci", "usb-storage", "uas", "xhci-pci", "hv_storvsc", "vmw_pvscsi",
)  # fmt: skip
"""The root is on a disk that one of these drives, or one of the many that dracut finds by what they do."""
_OF_SYSTEMD: Final = ("autofs4", "efivarfs")
"""What its first process looks for (systemd, src/core/kmod-setup.c).

Without the firmware's variables it does not know that the boot is measured: PCR 11 lacks the phases, and no disk opens.
"""


def build(root: Path, version: str, out: Path, tools: Tree, *, epoch: int, without: Sequence[str] = ()) -> None:
    """Make it with the dracut that is in the root.

    Args:
        root: of the image.
        version: of its kernel.
        out: the file.
        tools: has depmod and zstd.
        epoch: the time of all files, seconds.
        without: patterns of modules that dracut does not get to see; see `left_out`.

    Raises:
        BuildError: dracut failed.
    """
    work = out.parent / "initrd-work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    modules = root / "usr/lib/modules" / version
    dependencies = _dependencies((modules / "modules.dep").read_text())
    drivers = [each for each in (*_DRIVERS, *_OF_SYSTEMD) if _name(each) in {_name(path) for path in dependencies}]
    seen = {work: "/run/b/work"}
    if without:
        gone = left_out(dependencies, without, drivers)
        thinned = work / "thin/usr/lib/modules" / version
        shutil.copytree(modules, thinned, symlinks=True)
        (work / "thin/lib").symlink_to("usr/lib")
        for path in gone:
            (thinned / path).unlink()
        tools.run(["depmod", "--basedir", "/run/b/thin", version], {work / "thin": "/run/b/thin"})
        seen[thinned] = f"/usr/lib/modules/{version}"
    present = {path.name.lstrip("0123456789") for path in (root / "usr/lib/dracut/modules.d").iterdir()}
    tree = Tree(root, tools.progress, {**tools.environment, "SOURCE_DATE_EPOCH": str(epoch)})
    tree.run(
        [
            "dracut", "--quiet", "--force", "--reproducible", "--no-hostonly", "--no-hostonly-cmdline",
            "--no-early-microcode",
            "--tmpdir=/run/b/work", f"--kver={version}", "--add", " ".join(_MODULES),
            "--omit", " ".join(sorted(present & set(_LEFT_OUT))), "--add-drivers", " ".join(drivers),
            "--nofscks", "--no-compress", "/run/b/work/initrd",
        ],
        seen,
    )  # fmt: skip
    # Here and not by dracut, whose programs may be emulated. The number of threads changes the result's bytes.
    tools.run(
        ["zstd", "--quiet", "-19", "-T2", "/run/b/work/initrd", "-o", f"/run/b/out/{out.name}"],
        {work: "/run/b/work", out.parent: "/run/b/out"},
    )
    shutil.rmtree(work)


def left_out(
    dependencies: dict[str, tuple[str, ...]], without: Iterable[str], drivers: Iterable[str]
) -> frozenset[str]:
    """Say which modules an initrd goes without: those that match, and those that could not be loaded without them.

    Args:
        dependencies: paths of modules as in modules.dep, each with all that it needs.
        without: patterns of paths below the kernel's modules; a folder stands for all that is in it.
        drivers: names of modules that stay, whatever matches, and with them what they need.
    """
    wanted = {_name(each) for each in drivers}
    kept = {path for path in dependencies if _name(path) in wanted}
    kept |= {need for path in kept for need in dependencies[path]}
    patterns = [pattern for each in without for pattern in (each, f"{each}/*")]
    gone = {path for path in dependencies if any(fnmatchcase(path, pattern) for pattern in patterns)} - kept
    return frozenset(gone | {path for path, needs in dependencies.items() if gone.intersection(needs)})


def _dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """Read modules.dep: a line for each module, `path: path path`."""
    lines = (line.partition(":") for line in text.splitlines() if line)
    return {path: tuple(needs.split()) for path, _, needs in lines}


def _name(path: str) -> str:
    """Return a module's name as the kernel has it, of its path or of its name in either spelling."""
    return Path(path).name.partition(".ko")[0].replace("-", "_")
