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

from image.builder import emulation
from image.builder.chroot import ISOLATED
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

_GNU: Final = {"arm64": "aarch64-linux-gnu", "amd64": "x86-64-linux-gnu"}
"""Architectures as compilers name them, as in gcc-aarch64-linux-gnu."""

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

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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
        lines = own_sources(sources_file)
    elif offline:
        lines = ()
    else:
        found = for_release(host_sources(Path("/etc/apt")), _host_release(), RELEASE)
        lines = tuple(source.line("{arch}") for source in found)
    dump = "" if offline else subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return Archive(lines, apt_options(dump), cache, offline)


def own_sources(file: Path) -> tuple[str, ...]:
    """Read `--apt-sources`.

    Raises:
        MissingError: it cannot be read, or has no archive in it: another one, which nobody named, would be taken.
    """
    try:
        lines = tuple(line.strip() for line in file.read_text().splitlines() if line.startswith("deb "))
        for line in lines:
            line.format(arch="")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"--apt-sources {file}: {getattr(error, 'strerror', None) or 'is no text'}") from error
    except (KeyError, IndexError, ValueError) as error:
        raise MissingError(f"--apt-sources {file}: of braces, {{arch}} alone means something") from error
    if not lines:
        raise MissingError(
            f"--apt-sources {file}: no archive in it; lines are as in sources.list(5), "
            "deb [arch={arch}] http://ADDRESS/debian trixie main"
        )
    return lines


def check_stored(source: Archive, packages: Sequence[str], architecture: str) -> None:
    """Look whether the cache has all that an image is built from, apart from wheels.

    Raises:
        MissingError: it has not; the message lists what is not there.
    """
    wanted = {"tools tree": _tools_place(source), "root tar": root_place(source, packages, architecture)}
    if emulation.needed(architecture):
        wanted["cross compiler"] = _cross_place(source, architecture)
    missing = [f"  {what}: {place.name}" for what, place in wanted.items() if not place.exists()]
    if missing:
        raise MissingError(
            f"{source.cache} lacks what --offline builds from:\n"
            + "\n".join(missing)
            + "\nbuild once without --offline"
        )


def tools_tree(source: Archive, progress: Progress) -> Path:
    """Return the folder of the tools, made when it is not there yet.

    Raises:
        BuildError: mmdebstrap failed.
    """
    tree = _tools_place(source)
    if tree.is_dir():
        progress.cached("tools tree", tree.name)
        return tree
    partial = tree.with_suffix(".partial")
    _remove(partial)
    with progress.step("tools tree", f"{len(TOOLS)} packages and what they need of Debian {RELEASE}"):
        _mmdebstrap(source, progress, partial, TOOLS, architectures=(_host_architecture(),), variant="apt", epoch=0)
        partial.rename(tree)
    return tree


def cross_tree(source: Archive, architecture: str, progress: Progress) -> Path:
    """Return a tree of this machine's architecture in which the TPM binding is compiled for another one.

    Debian's libraries of two architectures lie side by side in it, so that nothing has to be emulated.

    Raises:
        BuildError: mmdebstrap failed.
    """
    tree = _cross_place(source, architecture)
    if tree.is_dir():
        progress.cached("cross compiler", tree.name)
        return tree
    partial = tree.with_suffix(".partial")
    _remove(partial)
    with progress.step("cross compiler", f"what compiles the TPM binding for {architecture}"):
        _mmdebstrap(
            source, progress, partial, _cross_packages(architecture),
            architectures=(_host_architecture(), architecture), variant="apt", epoch=0,
        )  # fmt: skip
        partial.rename(tree)
    return tree


def root_tar(
    source: Archive, packages: Sequence[str], architecture: str, progress: Progress, *, epoch: int, tools: Path
) -> Path:
    """Return the tar of the root file system, made when it is not there yet; the package list is its key.

    Where its programs do not run here, they have to be emulated, and `tools` lends what does the same on each
    architecture.

    Raises:
        BuildError: mmdebstrap failed.
    """
    tar = root_place(source, packages, architecture)
    if tar.is_file():
        progress.cached("root tar", tar.name)
        return tar
    partial = tar.with_name(f"partial-{tar.name}")
    _remove(partial)
    foreign = emulation.needed(architecture)
    how = f"{architecture}{', emulated: this takes long' if foreign else ''}"
    with progress.step("root tar", f"{len(packages)} packages and what they need, {how}"):
        _mmdebstrap(
            source, progress, partial, packages, architectures=(architecture,), variant="essential", epoch=epoch,
            native=emulation.native_hooks(tools) if foreign else (),
        )  # fmt: skip
        partial.rename(tar)
    return tar


def _tools_place(source: Archive) -> Path:
    return source.cache / f"tools-{_key(TOOLS, _host_architecture())}"


def _cross_place(source: Archive, architecture: str) -> Path:
    return source.cache / f"cross-{architecture}-{_key(_cross_packages(architecture), _host_architecture())}"


def root_place(source: Archive, packages: Sequence[str], architecture: str) -> Path:
    """Say where the cache has, or would have, the tar of a list of packages."""
    return source.cache / f"root-{architecture}-{_key(packages, architecture)}.tar"


def _cross_packages(architecture: str) -> tuple[str, ...]:
    return (
        f"gcc-{_GNU[architecture]}", f"pkgconf:{architecture}", f"libc6-dev:{architecture}",
        f"libtss2-dev:{architecture}", f"libpython3-dev:{architecture}", "python3",
    )  # fmt: skip


def _mmdebstrap(
    source: Archive,
    progress: Progress,
    target: Path,
    packages: Sequence[str],
    *,
    architectures: Sequence[str],
    variant: str,
    epoch: int,
    native: Sequence[str] = (),
) -> None:
    if shutil.which("mmdebstrap") is None:
        raise MissingError("mmdebstrap is missing: apt-get install mmdebstrap")
    debs = source.cache / "debs"
    (debs / "partial").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.cache, prefix="apt-", ignore_cleanup_errors=True) as scratch:
        options = Path(scratch) / "apt.conf"
        path = f"{emulation.NATIVE_PATH}:{_PATH}" if native else _PATH
        options.write_text(f'{source.options}\nDPkg::Path "{path}";\n')
        argv: list[str | Path] = [
            *ISOLATED, "mmdebstrap", "--mode=root", f"--variant={variant}",
            f"--architectures={','.join(architectures)}", f"--aptopt={options}",
            "--skip=download/empty", "--skip=essential/unlink",
            f"--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives && cp -al {debs}/. \"$1\"/var/cache/apt/archives/",
            f"--customize-hook=cp -anl \"$1\"/var/cache/apt/archives/. {debs}/",
            f"--essential-hook={_NO_INITRD}",
            # It would look for its own name of the emulator, and for a package that tells whether there is one.
            "--skip=check/qemu",
            *native,
            f"--include={','.join(packages)}",
            *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            RELEASE, target,
            *(line.format(arch=",".join(architectures)) for line in source.lines),
        ]  # fmt: skip
        environment = {
            "SOURCE_DATE_EPOCH": str(epoch),
            "DEBIAN_FRONTEND": "noninteractive",
            "TMPDIR": scratch,  # a root that is interrupted goes with it
            "PATH": path,
            # A tree that a power cut tears is not renamed to what the cache is asked for.
            "DPKG_FORCE": "unsafe-io",
        }
        try:
            progress.run(argv, env=os.environ | environment)
        except BaseException:
            _remove(target)
            raise


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


def _remove(target: Path) -> None:
    """Remove what was begun: a folder or a file."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
