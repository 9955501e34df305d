"""Update bundles for tests: a good one, and ones that are bad in one way each. Built from the cache of the image.

Nothing in a bundle is patched afterwards but where that is the point: each is built and signed as a release is.
"""

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from hil.loopback.children import RigError
from hil.rig.disk import flip_bit
from hil.rig.patience import patient

Kind = Literal[
    "good", "unhealthy", "dying", "panicking", "silent", "below-floor", "foreign", "damaged", "next-generation"
]
_REPO: Final = Path(__file__).parents[2]
_BUILD_SECONDS: Final = 1800.0
FREEZE: Final = "/sys/fs/cgroup/init.scope/cgroup.freeze"
"""What holds the first process of a system with systemd, as a hang does: it keeps the watchdog and feeds it no more.

One that crashes is no hang: it lets go of the watchdog.
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a bundle differs from the image of the repository."""

    version: str
    files: dict[str, str] = field(default_factory=dict)  # laid over the root
    words: tuple[str, ...] = ()  # of the builder
    own_keys: bool = False


RECIPES: Final[dict[Kind, Recipe]] = {
    "good": Recipe("0.1.1"),
    "unhealthy": Recipe(
        "0.1.2",
        files={
            "etc/systemd/system/gateway.service.d/90-rig.conf": "[Service]\nExecStart=\nExecStart=/bin/false\n",
            # What will not come need not be waited for as long as a gateway that an emulated processor starts.
            "etc/systemd/system/sluice-health.service.d/90-rig.conf": (
                "[Service]\nExecStart=\n"
                "ExecStart=/opt/sluice/bin/gateway appliance health --soak 20 --start-within 60\n"
            ),
        },
    ),
    # Its gateway starts, answers, and is killed half a minute later, each time: well at a look, and not over a soak.
    "dying": Recipe(
        "0.1.7",
        files={
            "usr/lib/sluice/health.env": "SLUICE_SOAK_SECONDS=240\n",
            "etc/systemd/system/rig-dying.service": (
                "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=2\nExecStart=/bin/sh -c '"
                "systemctl is-active -q gateway.service && sleep 30 && systemctl kill --signal=KILL gateway.service'\n"
            ),
            "etc/systemd/system/multi-user.target.d/90-rig.conf": "[Unit]\nWants=rig-dying.service\n",
        },
    ),
    # The first process of the new system ends at once, which the kernel does not survive.
    "panicking": Recipe("0.1.3", words=("--cmdline", "init=/bin/false")),
    # It boots, and then its first process does nothing any more: nothing starts, fails, or restarts the device. The
    # watchdog alone can end that.
    "silent": Recipe(
        "0.1.4",
        files={
            "etc/systemd/system/rig-silent.service": (
                f"[Unit]\nBefore=gateway.service\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo 1 >{FREEZE}'\n"
            ),
            "etc/systemd/system/multi-user.target.d/90-rig.conf": "[Unit]\nWants=rig-silent.service\n",
        },
    ),
    "below-floor": Recipe("0.0.1", words=("--floor", "0.0.1")),
    "foreign": Recipe("0.1.5", own_keys=True),
    # Once it was kept, images of the generation before it cannot open the vault.
    "next-generation": Recipe("0.1.6", words=("--generation", "2")),
}


def bundle(kind: Kind, image: Path, variant: str) -> Path:
    """Return a bundle, built now if there is none that is as new as the image; the builder's manifest is beside it.

    Args:
        kind: what is wrong with it.
        image: folder of the image that it is an update for, below var/image.
        variant: `rig` or `shipping`.

    Raises:
        RigError: it cannot be built; the builder's last lines.
    """
    if kind == "damaged":
        return _damaged(bundle("good", image, variant))
    recipe = RECIPES[kind]
    out = image.parent / f"{image.name}-bundles" / kind
    found = out / ("bundle-rig.raucb" if variant == "rig" else "bundle.raucb")
    stamp = out / "of"
    base = (image / "manifest.json").read_text()
    of = json.dumps([json.loads(base)["variants"][variant], recipe.version, recipe.files, recipe.words])
    if found.exists() and stamp.exists() and stamp.read_text() == of:
        return found
    overlay = out.with_name(f"{kind}.overlay")
    shutil.rmtree(overlay, ignore_errors=True)
    for name, content in recipe.files.items():
        (overlay / name).parent.mkdir(parents=True, exist_ok=True)
        (overlay / name).write_text(content)
    words = ["--version", recipe.version, *recipe.words, *(("--overlay", str(overlay)) if recipe.files else ())]
    if recipe.own_keys:
        words += ["--keys", str(_strange_keys(image.parent / f"{image.name}-bundles" / "strange-keys"))]
    command = [sys.executable, str(_REPO / "image" / "build"), image.name, "--bundle-only", "--offline"]
    command += [*(("--rig-only",) if variant == "rig" else ()), "--output", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patient(_BUILD_SECONDS))
    if done.returncode:
        raise RigError(f"the {kind} bundle cannot be built:\n{done.stderr[-3000:]}")
    stamp.write_text(of)
    return found


def _damaged(good: Path) -> Path:
    """Return a copy of a good bundle with one flipped bit where every installation reads.

    Blocks that the device has already are not read from an adaptive bundle at all: a bit among them does no harm.
    """
    out = good.parents[1] / "damaged"
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(good, out / good.name)
    (out / "manifest.json").write_text((good.parent / "manifest.json").read_text())
    with good.open("rb") as content:
        (inodes,) = struct.unpack_from("<Q", content.read(96), 64)  # inode_table_start: Linux, squashfs_fs.h
    flip_bit(out / good.name, inodes + 100)
    return out / good.name


def _strange_keys(folder: Path) -> Path:
    """Make keys of another vendor. The device must not know the difference by anything but the signature."""
    if (folder / "bundle.crt").exists():
        return folder
    from image.builder import keys as vendor  # noqa: PLC0415 - the builder is no part of an installed package

    folder.mkdir(parents=True, exist_ok=True)
    script = vendor._SCRIPT.replace("/run/b/keys", str(folder))
    done = subprocess.run(["sh", "-c", f"set -e\n{script}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"keys cannot be made: {done.stderr[-1000:]}")
    return folder
