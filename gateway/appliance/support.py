"""Collects what a person far away needs to help: one archive, bounded, without records and without secrets."""

import io
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import structlog
import yaml

from gateway.appliance.health import boot_id
from gateway.appliance.image import read_image
from gateway.appliance.places import Places
from gateway.appliance.scrub import Scrubber, secrets_of, without_secrets
from gateway.config import Config
from gateway.configload import read
from gateway.control import ask, socket_path
from gateway.doctor import Diagnosis
from gateway.errors import ConfigError, GatewayError
from gateway.outbox.inspect import status as outbox_status
from gateway.recorder import outbox_file
from gateway.version import program_version
from gateway.wire.times import rfc3339

log = structlog.get_logger()

MAX_PART_BYTES: Final = 4 * 1024 * 1024
MAX_TOTAL_BYTES: Final = 32 * 1024 * 1024
_COMMAND_SECONDS: Final = 20.0
_UNITS: Final = (
    "gateway.service",
    "sluice-*.service",
    "mosquitto.service",
    "rauc.service",
    "systemd-timesyncd.service",
    "systemd-networkd.service",
    "systemd-repart.service",
    "systemd-cryptsetup@*.service",
    "emergency.service",
)
"""Patterns, as journalctl takes them."""
_SBOM: Final = "sbom.cdx.json"
_STATE_FILES: Final = (
    "health.json", "last-run.json", "link-usage.json", "identity/identity.json", "ota/journal.json", "os/journal.json",
)  # fmt: skip


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What the bundle says of one of its files, or of one that is not there."""

    name: str
    size_bytes: int = 0
    cut: bool = False  # only its end was taken
    missing: str = ""  # why it is not there


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`, the last file of a bundle."""

    version: int = 1
    gateway: str
    at: str
    program: str
    image: str
    secrets_removed: int  # places where one stood
    files: list[Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the bundle gets its parts from."""

    places: Places
    config_file: Path
    examine: Callable[[], Iterator[Diagnosis]] | None  # the doctor; None: not asked
    now_ns: Callable[[], int]  # UTC
    run: Callable[[Sequence[str]], str]  # gives the output of a command; raises OSError when it does not work
    proc: Path = Path("/proc")


def collect(sources: Sources, out: IO[bytes]) -> Manifest:
    """Write a bundle as tar.gz; whatever cannot be had is named in its manifest and stops nothing.

    Raises:
        OSError: it cannot be written.
    """
    config, config_text = _configuration(sources.config_file)
    gateway = config.gateway.id if config is not None else "unprovisioned"
    scrubber = Scrubber(secrets_of(config, sources.places.settings, _state_of(sources, config)))
    now_ns = sources.now_ns()
    folder = f"support-{gateway}"
    entries: list[Entry] = []
    left = MAX_TOTAL_BYTES
    with tarfile.open(fileobj=out, mode="w|gz") as archive:

        def add(name: str, text: str) -> int:
            content = scrubber.clean(text).encode("utf-8", "replace")
            kept = content[-min(MAX_PART_BYTES, left) :] if left > 0 else b""
            _put(archive, f"{folder}/{name}", kept, now_ns)
            entries.append(Entry(name=name, size_bytes=len(kept), cut=len(kept) < len(content)))
            return len(kept)

        for name, part in _parts(sources, config, config_text).items():
            try:
                left -= add(name, part())
            except (OSError, UnicodeDecodeError, GatewayError) as error:
                entries.append(Entry(name=name, missing=scrubber.clean(str(error))))
        manifest = Manifest(
            gateway=gateway,
            at=rfc3339(now_ns),
            program=program_version(),
            image=read_image(sources.places.release).version,
            secrets_removed=scrubber.removed,
            files=entries,
        )
        _put(archive, f"{folder}/manifest.json", _json(manifest).encode(), now_ns)
    return manifest


def _parts(sources: Sources, config: Config | None, config_text: str) -> Mapping[str, Callable[[], str]]:
    """Return the parts by name, each made when it is asked for."""
    places = sources.places
    socket = socket_path(config.gateway) if config is not None else places.runtime / "gateway.sock"
    parts: dict[str, Callable[[], str]] = {
        "about.json": lambda: _about(sources),
        "gateway.yaml": lambda: config_text,
        "status.json": lambda: _json(ask(socket, "status")),
        "updates.json": lambda: _json(ask(socket, "ota")),
        "os.json": lambda: _json(ask(socket, "os")),
        "identity.json": lambda: _json(ask(socket, "identity")),
        "release.json": lambda: places.release.read_text("utf-8"),
        "provisioned.json": lambda: _without_digest(places.provisioned.read_text("utf-8")),
    }
    if config is not None:
        parts["outbox.json"] = lambda: _outbox(config)
    for name in _STATE_FILES:
        file = _state_of(sources, config) / name
        parts[f"state/{name.replace('/', '-')}"] = lambda file=file: file.read_text("utf-8")  # type: ignore[misc]
    if (places.share / _SBOM).is_file():
        parts[_SBOM] = lambda: (places.share / _SBOM).read_text("utf-8")
    journal = [f"--unit={unit}" for unit in _UNITS]
    commands = {
        "logs/services.txt": ["journalctl", "--no-pager", "--output=short-iso", "--lines=20000", *journal],
        "logs/kernel.txt": ["journalctl", "--no-pager", "--output=short-iso", "--lines=3000", "--dmesg"],
        # Each part of a dump is an entry; the words are in a field of it (systemd-pstore, Storage=journal).
        "logs/panics.txt": [
            *("journalctl", "--no-pager", "--output=cat", "--output-fields=FILE", "--lines=100"),
            "--unit=systemd-pstore.service",
        ],
        "system/units.txt": ["systemctl", "--no-pager", "--failed", "--all"],
        "system/boot.txt": ["systemd-analyze", "--no-pager", "critical-chain"],
        "system/slots.json": ["rauc", "status", "--detailed", "--output-format=json"],
        "system/addresses.txt": ["ip", "-brief", "address"],
        "system/blocks.txt": ["lsblk", "--output", "NAME,SIZE,TYPE,FSTYPE,PARTLABEL,MOUNTPOINTS"],
    }
    for name, command in commands.items():
        parts[name] = lambda command=command: sources.run(command)  # type: ignore[misc]
    for name in ("meminfo", "mounts", "loadavg", "pressure/memory", "pressure/io", "cmdline"):
        file = sources.proc / name
        parts[f"system/{name.replace('/', '-')}.txt"] = lambda file=file: file.read_text("utf-8")  # type: ignore[misc]
    if sources.examine is not None:
        examine = sources.examine
        parts["doctor.json"] = lambda: _json([*examine()])
    return parts


def _state_of(sources: Sources, config: Config | None) -> Path:
    """Return the state directory: on a machine that is no appliance it is where the configuration says."""
    return config.gateway.state_directory if config is not None else sources.places.state


def _about(sources: Sources) -> str:
    disks: dict[str, dict[str, int]] = {}
    for path in (sources.places.settings, sources.places.state, sources.places.state.parent / "outbox"):
        if path.is_dir():
            usage = shutil.disk_usage(path)
            disks[str(path)] = {"total_bytes": usage.total, "free_bytes": usage.free}
    return _json(
        {
            "program": program_version(),
            "python": platform.python_version(),
            "kernel": " ".join(os.uname()),
            "at": rfc3339(sources.now_ns()),
            "boot_id": boot_id(sources.proc),
            "uptime_seconds": _uptime(sources.proc),
            "disks": disks,
        }
    )


def _uptime(proc: Path) -> float | None:
    try:
        return float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _configuration(file: Path) -> tuple[Config | None, str]:
    """Return the configuration, and its text without secrets and comments; or why it cannot be read."""
    try:
        reading = read(file, require_files=False)
        plain = yaml.safe_load(file.read_text("utf-8"))
    except ConfigError as error:
        return None, f"# {error}\n"
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # What PyYAML says of a text quotes it, and a mistake may stand right beside a secret.
        return None, f"# {file} is not YAML; `gateway config validate` tells where\n"
    problems = "".join(f"# {problem.told(file.name)}\n" for problem in reading.problems)
    return reading.config, problems + yaml.safe_dump(without_secrets(plain), sort_keys=False, allow_unicode=True)


def _without_digest(text: str) -> str:
    try:
        record: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return "{}\n"
    return _json({key: value for key, value in record.items() if key != "reset_digest"})


def _outbox(config: Config) -> str:
    return _json(outbox_status(outbox_file(config.outbox.file, config.gateway.state_directory)))


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n"


def _put(archive: tarfile.TarFile, name: str, content: bytes, now_ns: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o600, now_ns // 1_000_000_000
    archive.addfile(info, io.BytesIO(content))


def output_of(command: Sequence[str]) -> str:
    """Run a command of the system and return what it says.

    Raises:
        OSError: it is not there, takes too long, or fails; says how.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_COMMAND_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} did not end within {_COMMAND_SECONDS:g} s") from error
    if done.returncode != 0 and not done.stdout:
        raise OSError(f"{command[0]}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout
