"""Watches the running gateway for a soak, and writes down whether this image may stay."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog

from gateway.appliance.image import Image, read_image
from gateway.appliance.places import Places
from gateway.appliance.soak import Baseline, Device, Look, Verdict, is_remote, judge
from gateway.config import CameraSource, Config, ModbusSource, MqttSource
from gateway.configload import read
from gateway.control import ask, socket_path
from gateway.errors import ConfigError, ControlError
from gateway.report import GatewayStatus
from gateway.vault.errors import VaultError
from gateway.vault.files import write_durably
from gateway.wire.times import rfc3339

log = structlog.get_logger()

EVERY_SECONDS: Final = 2.0
_SYSTEMCTL_SECONDS: Final = 5.0


class FailedBoot(msgspec.Struct, frozen=True, kw_only=True):
    """The last boot that was found unhealthy, for as long as the old image needs to tell of it."""

    at: str
    boot_id: str
    image: str
    reasons: list[str]


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """The file `health.json`: what the last soak has found; the agent of OS updates tells it to the bridge."""

    version: int = 1
    at: str
    boot_id: str
    image: Image
    verdict: Literal["healthy", "unhealthy", "unprovisioned"]
    healthy: bool
    reasons: list[str] = []
    notes: list[str] = []
    soak_seconds: float = 0.0
    was: Baseline | None = None  # when it was healthy the last time; what the next soak compares with
    failed: FailedBoot | None = None  # an earlier boot


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Everything that a soak looks at; its methods block."""

    places: Places
    monotonic: Callable[[], float]  # seconds
    now_ns: Callable[[], int]  # UTC
    pause: Callable[[float], None]
    restarts: Callable[[], int | None]  # of gateway.service
    proc: Path = Path("/proc")

    def soak(self, seconds: float, start_within: float) -> HealthReport:
        """Look for so long, judge, and write the report. A device that is not provisioned is healthy as it is.

        A disk that does not take the report is no reason against the image: the report is kept in memory until the next
        boot, and says so.

        Args:
            seconds: counted from the first answer of the gateway.
            start_within: it must answer by then.
        """
        image, before = read_image(self.places.release), read_health(self.places)
        was = before.was if before is not None else None
        if not self.places.config.exists():
            report = self._report("unprovisioned", image, was=was, notes=["no claim was taken yet; nothing to judge"])
        else:
            config, errors = self._config()
            looks = [] if errors else self._looks(config, seconds, start_within)
            verdict = judge(looks, _device(config, was, errors), image.version)
            report = self._judged(verdict, image, was, seconds)
        report = msgspec.structs.replace(report, failed=_failed_before(before, report.boot_id))
        return self._written(report)

    def _looks(self, config: Config | None, seconds: float, start_within: float) -> list[Look]:
        path = socket_path(config.gateway) if config is not None else self.places.runtime / "gateway.sock"
        began = self.monotonic()
        answered: float | None = None
        looks: list[Look] = []
        while True:
            look = self._look(path)
            if answered is None and look.status is not None:
                answered = look.at
                log.info("soak_begun", waited_seconds=round(look.at - began, 1))
            if answered is not None or not looks:
                looks.append(look)
            else:
                looks[-1] = look  # before the first answer only the last word counts
            end = began + start_within if answered is None else answered + seconds
            if look.at >= end:
                return looks
            self.pause(min(EVERY_SECONDS, max(0.05, end - look.at)))

    def _look(self, socket: Path) -> Look:
        status, problem = None, ""
        try:
            status = msgspec.convert(ask(socket, "status"), GatewayStatus)
        except (ControlError, msgspec.ValidationError) as error:
            problem = str(error)
        return Look(
            self.monotonic(),
            status,
            problem,
            self.restarts(),
            free_memory(self.proc),
            physical_interfaces(self.places.sysfs),
        )

    def _config(self) -> tuple[Config | None, tuple[str, ...]]:
        try:
            reading = read(self.places.config, require_files=False)
        except ConfigError as error:
            return None, (str(error),)
        return reading.config, tuple(problem.told(self.places.config.name) for problem in reading.errors)

    def _judged(self, verdict: Verdict, image: Image, was: Baseline | None, seconds: float) -> HealthReport:
        return self._report(
            verdict.word,
            image,
            was=verdict.now if verdict.word == "healthy" else was,
            reasons=[*verdict.reasons],
            notes=[*verdict.notes],
            seconds=seconds,
        )

    def _report(
        self,
        word: Literal["healthy", "unhealthy", "unprovisioned"],
        image: Image,
        *,
        was: Baseline | None,
        reasons: list[str] | None = None,
        notes: list[str] | None = None,
        seconds: float = 0.0,
    ) -> HealthReport:
        return HealthReport(
            at=rfc3339(self.now_ns()),
            boot_id=boot_id(self.proc),
            image=image,
            verdict=word,
            healthy=word != "unhealthy",
            reasons=reasons or [],
            notes=notes or [],
            soak_seconds=seconds,
            was=was,
        )

    def _written(self, report: HealthReport) -> HealthReport:
        """Write the report down; returns it as it was written."""
        if report.healthy:
            log.info("image_healthy", verdict=report.verdict, image=report.image.version, notes=report.notes)
        else:
            log.error("image_unhealthy", image=report.image.version, reasons=report.reasons, notes=report.notes)
        passing = self.places.health_until_reboot
        try:
            write_durably(self.places.health, _encoded(report))
            passing.unlink(missing_ok=True)
            return report
        except (VaultError, OSError) as error:
            log.error("health_report_not_kept", error=str(error), instead=str(passing))
            report = msgspec.structs.replace(report, notes=[*report.notes, f"kept until the next boot only: {error}"])
        try:
            passing.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(passing, _encoded(report))
        except (VaultError, OSError) as error:
            log.error("health_report_lost", error=str(error))
        return report


def read_health(places: Places) -> HealthReport | None:
    """Return the last report; None when there is none that can be read."""
    for file in (places.health_until_reboot, places.health):  # the first is there only where it is the newer one
        try:
            return msgspec.json.decode(file.read_bytes(), type=HealthReport)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
    return None


def _encoded(report: HealthReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def _failed_before(before: HealthReport | None, boot: str) -> FailedBoot | None:
    if before is None or before.healthy or before.boot_id == boot:
        return before.failed if before is not None else None
    return FailedBoot(at=before.at, boot_id=before.boot_id, image=before.image.version, reasons=before.reasons)


def _device(config: Config | None, was: Baseline | None, errors: tuple[str, ...]) -> Device:
    remote: set[str] = set()
    cold: set[str] = set()
    for name, pipeline in config.pipelines.items() if config is not None else ():
        source = config.sources[pipeline.source] if config is not None else None
        if isinstance(source, CameraSource | ModbusSource) and is_remote(source.device):
            remote.add(name)
        if isinstance(source, MqttSource):
            cold.add(name)
    return Device(was, errors, frozenset(remote), frozenset(cold))


def free_memory(proc: Path) -> float:
    """Return the share of memory that programs could still get; 1.0 where the kernel does not say."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        figures = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
        return figures["MemAvailable"] / figures["MemTotal"]
    except (OSError, KeyError, ValueError, IndexError, ZeroDivisionError):
        return 1.0


def physical_interfaces(sysfs: Path) -> tuple[str, ...]:
    """Return the network interfaces that are hardware."""
    return tuple(sorted(entry.parent.name for entry in sysfs.glob("class/net/*/device")))


def boot_id(proc: Path) -> str:
    """Return what tells this boot from others; empty where the kernel does not say."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def service_restarts() -> int | None:
    """Ask systemd how often it has restarted the gateway in this boot; None where it does not run it."""
    command = ["systemctl", "show", "--property=NRestarts", "--value", "gateway.service"]
    try:
        done: Any = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS, check=False)
        return int(done.stdout.strip())
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
