"""Debian trees: the tools that build, and the root of the image, both by mmdebstrap and both kept in the cache."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image.builder.errors import MissingError
from image.builder.progress import Progress
from image.builder.sources import apt_options, for_release, host_sources

RELEASE: Final = "trixie"

TOOLS: Final = (
    "ca-certificates", "cryptsetup-bin", "dosfstools", "e2fsprogs", "efitools", "erofs-utils", "gcc", "kmod",
    "libc6-dev", "libtss2-dev", "mtools", "openssl", "pkg-config", "python3", "python3-cryptography", "python3-dev",
    "python3-msgspec", "qemu-user-static", "rauc", "sbsigntool", "squashfs-tools", "systemd", "systemd-boot-efi",
    "systemd-repart",
    "systemd-ukify", "udev", "zstd",
)  # fmt: skip
"""Versions of the release that the image is made of, whatever the host runs."""

_BINDING: Final = ("gcc", "libc6-dev", "libtss2-dev", "pkg-config", "python3", "python3-dev")

# Left out while unpacking: nothing on the device reads them. Copyright files stay.
_LEFT_OUT: Final = (
    "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/lintian/*", "/usr/share/locale/*", "/usr/share/man/*",
    "/usr/share/bug/*", "/usr/share/bash-completion/*", "/usr/share/zsh/*", "/usr/share/fish/*",
    "/etc/kernel/postinst.d/dracut",
)  # fmt: skip

# The initrd is made later, for all devices alike. The package's hook would make one for the machine that builds; its
# maintainer script calls it, so something has to be there.
_NO_INITRD: Final = (
    'mkdir -p "$1/etc/kernel/postinst.d" && printf "#!/bin/sh\\n" >"$1/etc/kernel/postinst.d/dracut" '
    '&& chmod 0755 "$1/etc/kernel/postinst.d/dracut"'
)


@dataclass(frozen=True, slots=True)
class Archive:
    """How packages are had on this machine."""

    lines: tuple[str, ...]  # sources.list, with {arch} for the architecture
    options: str  # apt.conf
    cache: Path
    offline: bool


def archive(cache: Path, sources_file: Path | None, *, offline: bool) -> Archive:
    """Derive it from the host's apt.

    Raises:
        MissingError: the host has no archive of Debian.
    """
    if sources_file is not None:
        lines = tuple(line for line in sources_file.read_text().splitlines() if line.startswith("deb "))
    elif offline:
        lines = ()
    else:
        found = for_release(host_sources(Path("/etc/apt")), _host_release(), RELEASE)
        lines = tuple(source.line("{arch}") for source in found)
    dump = "" if offline else subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return Archive(lines, apt_options(dump), cache, offline)


def tools_tree(source: Archive, progress: Progress) -> Path:
    """Return the folder of the tools, made when it is not there yet.

    Raises:
        BuildError: mmdebstrap failed.
        MissingError: it is not in the cache, in offline mode.
    """
    tree = source.cache / f"tools-{_key(TOOLS, _host_architecture())}"
    if tree.is_dir():
        progress.cached("tools tree", tree.name)
        return tree
    partial = tree.with_suffix(".partial")
    _remove_tree(partial)
    with progress.step("tools tree", f"{len(TOOLS)} packages and what they need of Debian {RELEASE}"):
        _mmdebstrap(source, progress, partial, TOOLS, architecture=_host_architecture(), variant="apt", epoch=0)
        partial.rename(tree)
    return tree


def binding_tree(source: Archive, architecture: str, progress: Progress) -> Path:
    """Return a tree of another architecture in which the TPM binding is compiled.

    Raises:
        BuildError: mmdebstrap failed.
        MissingError: it is not in the cache, in offline mode.
    """
    tree = source.cache / f"binding-{architecture}-{_key(_BINDING, architecture)}"
    if tree.is_dir():
        progress.cached("binding tree", tree.name)
        return tree
    partial = tree.with_suffix(".partial")
    _remove_tree(partial)
    with progress.step("binding tree", f"what compiles the TPM binding for {architecture}, emulated: this takes long"):
        _mmdebstrap(source, progress, partial, _BINDING, architecture=architecture, variant="apt", epoch=0)
        partial.rename(tree)
    return tree


def root_tar(source: Archive, packages: Sequence[str], architecture: str, epoch: int, progress: Progress) -> Path:
    """Return the tar of the root file system, made when it is not there yet; the package list is its key.

    Raises:
        BuildError: mmdebstrap failed.
        MissingError: it is not in the cache, in offline mode.
    """
    tar = source.cache / f"root-{architecture}-{_key(packages, architecture)}.tar"
    if tar.is_file():
        progress.cached("root tar", tar.name)
        return tar
    partial = tar.with_name(f"partial-{tar.name}")
    partial.unlink(missing_ok=True)
    with progress.step("root tar", f"{len(packages)} packages and what they need, {architecture}"):
        _mmdebstrap(source, progress, partial, packages, architecture=architecture, variant="essential", epoch=epoch)
        partial.rename(tar)
    return tar


def _mmdebstrap(
    source: Archive,
    progress: Progress,
    target: Path,
    packages: Sequence[str],
    *,
    architecture: str,
    variant: str,
    epoch: int,
) -> None:
    if source.offline:
        raise MissingError(
            f"{target.name.replace('.partial', '')} is not in {source.cache}: build once without --offline"
        )
    if shutil.which("mmdebstrap") is None:
        raise MissingError("mmdebstrap is missing: apt-get install mmdebstrap")
    debs = source.cache / "debs"
    (debs / "partial").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.cache, prefix="apt-") as scratch:
        options = Path(scratch) / "apt.conf"
        options.write_text(source.options + "\n")
        argv: list[str | Path] = [
            "mmdebstrap", "--mode=root", f"--variant={variant}", f"--architectures={architecture}",
            f"--aptopt={options}", "--skip=download/empty", "--skip=essential/unlink",
            f"--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives && cp -al {debs}/. \"$1\"/var/cache/apt/archives/",
            f"--customize-hook=cp -anl \"$1\"/var/cache/apt/archives/. {debs}/",
            f"--essential-hook={_NO_INITRD}",
            f"--include={','.join(packages)}",
            *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            RELEASE, target,
            *(line.format(arch=architecture) for line in source.lines),
        ]  # fmt: skip
        environment = {
            "SOURCE_DATE_EPOCH": str(epoch),
            "DEBIAN_FRONTEND": "noninteractive",
            "TMPDIR": str(source.cache),
        }
        progress.run(argv, env=os.environ | environment)


def _key(packages: Sequence[str], architecture: str) -> str:
    text = "\n".join([RELEASE, architecture, *sorted(set(packages)), *_LEFT_OUT])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _host_release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise MissingError("this machine's /etc/os-release has no VERSION_CODENAME: build on Debian 12 or 13")


def _host_architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def _remove_tree(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
