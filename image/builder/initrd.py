"""The initrd: the same for all devices of a target, with what opens the root under dm-verity and measures phases."""

import shutil
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
    "kernel-modules",
)
_LEFT_OUT: Final = (
    "brltty", "btrfs", "crypt-gpg", "dmraid", "fido2", "i18n", "iscsi", "lvm", "mdraid", "multipath", "network", "nfs",
    "nvdimm", "pcsc", "pkcs11", "plymouth", "qemu", "resume", "systemd-cryptsetup", "systemd-repart",
    "tpm2-tss", "usrmount",
)  # fmt: skip
_DRIVERS: Final = ("erofs", "dm-verity", "dm-mod", "virtio_blk", "virtio_pci", "virtio_scsi", "nvme", "ahci", "sd_mod")


def build(root: Path, version: str, out: Path, epoch: int, tools: Tree) -> None:
    """Make it with the dracut that is in the root.

    Raises:
        BuildError: dracut failed.
    """
    work = out.parent / "initrd-work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    present = {path.name.lstrip("0123456789") for path in (root / "usr/lib/dracut/modules.d").iterdir()}
    tree = Tree(root, tools.progress, {**tools.environment, "SOURCE_DATE_EPOCH": str(epoch)})
    tree.run(
        [
            "dracut", "--quiet", "--force", "--reproducible", "--no-hostonly", "--no-hostonly-cmdline",
            "--no-early-microcode",
            "--tmpdir=/run/b/work", f"--kver={version}", "--add", " ".join(_MODULES),
            "--omit", " ".join(sorted(present & set(_LEFT_OUT))), "--add-drivers", " ".join(_DRIVERS),
            "--no-compress", "/run/b/work/initrd",
        ],
        {work: "/run/b/work"},
    )  # fmt: skip
    # Here and not by dracut, whose programs may be emulated. The number of threads changes the result's bytes.
    tools.run(
        ["zstd", "--quiet", "-15", "-T2", "/run/b/work/initrd", "-o", f"/run/b/out/{out.name}"],
        {work: "/run/b/work", out.parent: "/run/b/out"},
    )
    shutil.rmtree(work)
