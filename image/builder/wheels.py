"""The application: locked wheels for the device's Python, the TPM binding built from its source, and Sluice itself.

Wheels are unpacked here (PEP 427) and nothing is run, so that one machine builds for another architecture.
"""

import base64
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import Final

from image.builder.chroot import Tree
from image.builder.errors import BuildError, MissingError
from image.builder.lock import Pin, closure, normalized, read_lock, seeds
from image.builder.progress import Progress

PYTHON: Final = "3.13"  # of Debian 13
SITE: Final = f"lib/python{PYTHON}/site-packages"
_PLATFORMS: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_BUILD_BACKEND: Final = ("hatchling",)

_SCRIPT: Final = """#!/opt/sluice/bin/python
import sys

from {module} import {function}

sys.exit({function}())
"""


@dataclass(frozen=True, slots=True)
class Wheels:
    """What goes into the image, and what builds it."""

    application: tuple[Path, ...]
    build: tuple[Path, ...]  # unpacked beside it for hatchling
    pins: tuple[Pin, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """pip of this machine, as it is configured here, and the folder that keeps what it fetched."""

    cache: Path
    progress: Progress
    offline: bool

    @property
    def python(self) -> Path:
        """A virtual environment of its own, because this runs before `make setup`."""
        return self.cache / "pip" / "bin" / "python"

    def fetch(self, pins: Iterable[Pin], folder: Path, options: Iterable[str]) -> None:
        """Download what is not there yet, checked against its hash.

        Raises:
            BuildError: pip failed.
            MissingError: something is not in the cache, in offline mode.
        """
        folder.mkdir(parents=True, exist_ok=True)
        missing = [pin for pin in pins if not files_of(folder, pin)]
        if not missing:
            return
        if self.offline:
            names = ", ".join(f"{pin.name} {pin.version}" for pin in missing)
            raise MissingError(f"not in {folder}: {names}; build once without --offline")
        self._prepare()
        wanted = folder / "wanted.txt"
        wanted.write_text("\n".join(line for pin in missing for line in pin.lines) + "\n")
        argv: list[str | Path] = [self.python, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        self.progress.run([*argv, *options, "--dest", folder, "-r", wanted])
        wanted.unlink()

    def _prepare(self) -> None:
        if not self.python.is_file():
            interpreter = next((each for each in (sys.executable, "/usr/bin/python3") if _can_make_venv(each)), None)
            if interpreter is None:
                raise MissingError("no Python here can make a virtual environment: apt-get install python3-venv")
            self.progress.run([interpreter, "-m", "venv", self.cache / "pip"])


def fetch_application(repo: Path, index: Index, architecture: str) -> Wheels:
    """Get the wheels that `sluice[device]` needs on Debian's Python.

    Raises:
        BuildError: the lock is incomplete, or pip failed.
        MissingError: not in the cache, in offline mode.
    """
    pins = read_lock(repo / "requirements" / "runtime.txt")
    folder = index.cache / "wheels" / architecture
    options = _platform_options(_PLATFORMS[architecture])

    def fetch(some: list[Pin]) -> dict[str, list[str]]:
        index.fetch(some, folder, options)
        return {pin.name: requirements_of(_wheel(folder, pin)) for pin in some}

    chosen = closure(seeds(repo / "pyproject.toml", "device"), pins, fetch)
    backend = closure(_BUILD_BACKEND, pins, fetch)
    return Wheels(
        application=tuple(_wheel(folder, pin) for pin in chosen.values()),
        build=tuple(_wheel(folder, pin) for pin in backend.values()),
        pins=tuple(chosen.values()),
    )


def build_tpm_binding(repo: Path, index: Index, builder: Tree, architecture: str, epoch: int) -> Path:
    """Build the wheel of tpm2-pytss, which is published as source alone, in a tree of the image's release.

    The tree's programs are this machine's; for another architecture it has a cross compiler, and its Python is told to
    answer as the other one would.

    Raises:
        BuildError: it does not build.
    """
    pin = read_lock(repo / "requirements" / "tpm.txt")["tpm2-pytss"]
    folder = index.cache / "wheels" / f"{architecture}-tpm"
    made = folder / pin.version
    done = next(made.glob("*.whl"), None)
    if done is not None:
        return done
    backend = read_lock(repo / "requirements" / "tpm-build.txt")
    host = os.uname().machine
    backend_folder = index.cache / "wheels" / f"build-{host}"
    index.fetch(backend.values(), backend_folder, _platform_options(host))
    # pip asks a source for its metadata, which this one answers only where the TSS headers are.
    if not files_of(folder, pin):
        own = index.cache / "pip-tpm"
        index.fetch(backend.values(), own, ("--only-binary", ":all:"))
        index.progress.run(
            [index.python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *own.glob("*.whl")]
        )
        index.fetch([pin], folder, ("--no-binary", "tpm2-pytss", "--no-build-isolation"))
    work = index.cache / f"tpm-build-{architecture}"
    shutil.rmtree(work, ignore_errors=True)
    for each in backend.values():
        unpack(_wheel(backend_folder, each), work / "site")
    shutil.unpack_archive(files_of(folder, pin)[0], work / "source", filter="data")
    source = next((work / "source").iterdir())
    out = work / "out"
    out.mkdir()
    code = "import setuptools.build_meta as backend; backend.build_wheel('/run/b/out')"
    tree = Tree(
        builder.root,
        builder.progress,
        {"PYTHONPATH": "/run/b/site", "SOURCE_DATE_EPOCH": str(epoch), "PYTHONDONTWRITEBYTECODE": "1"}
        | (_cross(_PLATFORMS[architecture]) if _PLATFORMS[architecture] != host else {}),
    )
    tree.run(
        ["sh", "-ec", f'cd /run/b/source && exec python3 -c "{code}"'],
        {work / "site": "/run/b/site", source: "/run/b/source", out: "/run/b/out"},
    )
    made.mkdir(parents=True, exist_ok=True)
    wheel = next(out.glob("*.whl"))
    return Path(shutil.move(wheel, made / wheel.name))


def build_sluice(repo: Path, wheels: Wheels, builder: Tree, work: Path, epoch: int) -> Path:
    """Build the project's own wheel from the working tree.

    Raises:
        BuildError: hatchling failed.
    """
    site, out = work / "hatch", work / "wheel"
    for each in wheels.build:
        unpack(each, site)
    out.mkdir(parents=True, exist_ok=True)
    code = "import hatchling.build as backend; backend.build_wheel('/run/b/out')"
    tree = Tree(
        builder.root,
        builder.progress,
        {"PYTHONPATH": "/run/b/hatch", "SOURCE_DATE_EPOCH": str(epoch), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    tree.run(
        ["sh", "-ec", f'cd /run/b/repo && exec python3 -c "{code}"'],
        {site: "/run/b/hatch", repo: "/run/b/repo", out: "/run/b/out"},
    )
    return next(out.glob("*.whl"))


def install(root: Path, wheels: Iterable[Path], sluice: Path) -> None:
    """Lay out `/opt/sluice` like a virtual environment of Debian's Python.

    Of Sluice itself only the device's half is installed.
    """
    prefix = root / "opt/sluice"
    site = prefix / SITE
    site.mkdir(parents=True)
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(f"/usr/bin/python{PYTHON}")
    (prefix / "bin/python3").symlink_to("python")
    (prefix / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n"
        f"executable = /usr/bin/python{PYTHON}\n"
    )
    for wheel in wheels:
        unpack(wheel, site)
    unpack(sluice, site, keep=lambda name: name.startswith("gateway/") or ".dist-info/" in name)
    script = prefix / "bin/gateway"
    script.write_text(_SCRIPT.format(module="gateway.cli", function="main"))
    script.chmod(0o755)


def unpack(wheel: Path, site: Path, keep: Callable[[str], bool] = lambda _name: True) -> None:
    """Unpack a wheel into a folder of packages. Its scripts are left out: nothing on the device calls them.

    Raises:
        BuildError: a file would lie outside, or differs from its hash in RECORD.
    """
    with zipfile.ZipFile(wheel) as archive:
        recorded = _record(archive)
        kept: list[str] = []
        for info in archive.infolist():
            name = info.filename
            if info.is_dir() or not keep(name):
                continue
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise BuildError(f"{wheel.name}: {name} would lie outside")
            if path.parts[0].endswith(".data"):
                if path.parts[1] not in {"purelib", "platlib"}:
                    continue
                path = PurePosixPath(*path.parts[2:])
            content = archive.read(info)
            if recorded.get(name) and recorded[name] != _digest(content):
                raise BuildError(f"{wheel.name}: {name} is not what its RECORD says")
            target = site / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "RECORD":
                continue  # written anew, of what is there
            target.write_bytes(content)
            executable = (info.external_attr >> 16) & 0o111
            target.chmod(0o755 if executable else 0o644)
            kept.append(str(path))
        info_folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
    rows = [f"{name},sha256={_digest((site / name).read_bytes())},{(site / name).stat().st_size}" for name in kept]
    (site / info_folder / "RECORD").write_text("\n".join([*sorted(rows), f"{info_folder}/RECORD,,"]) + "\n")
    (site / info_folder / "INSTALLER").write_text("image/build\n")


def requirements_of(wheel: Path) -> list[str]:
    """Return the `Requires-Dist` of a wheel."""
    return metadata_of(wheel).get_all("Requires-Dist") or []


def metadata_of(wheel: Path) -> Message:
    """Read the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode(errors="replace"))


def _record(archive: zipfile.ZipFile) -> dict[str, str]:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    rows = csv.reader(io.StringIO(archive.read(name).decode()))
    return {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) > 1 and row[1].startswith("sha256=")}


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _cross(machine: str) -> dict[str, str]:
    """What makes setuptools compile for another machine: its compiler, and the build facts of its Python."""
    gnu = f"{machine}-linux-gnu"
    return {
        "CC": f"{gnu}-gcc",
        "PKG_CONFIG": f"{gnu}-pkg-config",
        "_PYTHON_SYSCONFIGDATA_NAME": f"_sysconfigdata__{gnu}",
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
    }


def _platform_options(machine: str) -> list[str]:
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(41, 16, -1)] + [f"manylinux2014_{machine}"]
    tags += [f"linux_{machine}"]
    versions = [
        "--implementation",
        "cp",
        "--python-version",
        PYTHON,
        "--abi",
        "cp313",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    return [*(word for tag in tags for word in ("--platform", tag)), *versions, "--only-binary", ":all:"]


def files_of(folder: Path, pin: Pin) -> list[Path]:
    """The files of a locked package: the cache outlives many a lock, so each is held against the lock's hashes."""
    if not folder.is_dir():
        return []
    named = (file for file in sorted(folder.iterdir()) if _of(file.name) == (pin.name, pin.version))
    return [file for file in named if hashlib.sha256(file.read_bytes()).hexdigest() in pin.hashes]


def _of(file: str) -> tuple[str, str] | None:
    """The package and the version in a file's name: of a wheel (PEP 427), or of a source (PEP 625)."""
    if file.endswith(".whl"):
        name, version, *_ = file.split("-")
    elif file.endswith(".tar.gz"):
        name, _, version = file.removesuffix(".tar.gz").rpartition("-")
    else:
        return None
    return normalized(name), version


def _wheel(folder: Path, pin: Pin) -> Path:
    for file in files_of(folder, pin):
        if file.suffix == ".whl":
            return file
    raise BuildError(f"no wheel of {pin.name} {pin.version} in {folder}")


def _can_make_venv(python: str) -> bool:
    if not os.access(python, os.X_OK):
        return False
    return subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0
