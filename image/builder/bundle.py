"""The update bundle: a signed squashfs under dm-verity that RAUC installs, also while it streams."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from image.builder.boards import Board
from image.builder.chroot import Tree
from image.builder.keys import Keys
from image.builder.release import Release


def manifest(board: Board, release: Release, root: Path, pcr11: Mapping[str, str]) -> str:
    """Return RAUC's manifest. pcr11: what the kernel image of each slot comes to; the device looks for its approval."""
    registers = "".join(f"pcr11-{slot}={value}\n" for slot, value in sorted(pcr11.items()))
    return (
        f"[update]\ncompatible={board.compatible}\nversion={release.version}\nbuild={release.commit}\n\n"
        "[bundle]\nformat=verity\n\n"
        "[hooks]\nfilename=hook\n\n"
        # Blocks that the device has in either slot are not fetched again.
        f"[image.rootfs]\nfilename={root.name}\nhooks=post-install\nadaptive=block-hash-index\n\n"
        f"[meta.sluice]\nversion={release.version}\nfloor={release.floor}\ncounter={release.generation}\n"
        f"commit={release.commit}\ntarget={board.name}\n{registers}"
    )


def build(
    out: Path,
    board: Board,
    release: Release,
    tools: Tree,
    *,
    keys: Keys,
    root: Path,
    files: Mapping[str, Path],
    pcr11: Mapping[str, str],
    hook: Path,
    work: Path,
) -> None:
    """Make and sign it.

    Args:
        out: the file.
        board: what it is for.
        release: what it is.
        tools: has rauc.
        keys: has RAUC's signing key.
        root: the packed root.
        files: kernel images and approvals, by name.
        pcr11: of each slot, lower-case hexadecimal; empty where the vendor's boot chain measures nothing.
        hook: what puts those in place.
        work: for what is packed.

    Raises:
        BuildError: rauc failed.
    """
    content = work / "bundle"
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    os.link(root, content / "root.img")
    for name, source in sorted(files.items()):
        shutil.copyfile(source, content / name)
    shutil.copyfile(hook, content / "hook")
    (content / "hook").chmod(0o755)
    (content / "manifest.raucm").write_text(manifest(board, release, content / "root.img", pcr11))
    for file in content.iterdir():
        os.utime(file, (release.epoch, release.epoch))
    out.unlink(missing_ok=True)
    # Who lacks 4 KiB of the root fetches the whole block of the squashfs: docs/decisions/0020-streamed-bundles.md.
    squashfs = "-b 32K -comp zstd -Xcompression-level 6 -processors 2 -no-progress -all-root"
    tools.run(
        [
            "rauc", "--cert=/run/b/keys/bundle.crt", "--key=/run/b/keys/bundle.key", "--keyring=/run/b/keys/ca.crt",
            f"--mksquashfs-args={squashfs}", "bundle",
            "/run/b/content", f"/run/b/out/{out.name}",
        ],
        {content: "/run/b/content", keys.folder: "/run/b/keys", out.parent: "/run/b/out"},
    )  # fmt: skip
    shutil.rmtree(content)
