"""All checks, in the order in which a person would look."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gateway.config import Config, Gateway, Vault
from gateway.configload import Problem, Reading, read
from gateway.doctor.cameras import try_cameras
from gateway.doctor.devices import (
    Machine,
    check_accelerator,
    check_cameras,
    check_iio,
    check_rules,
    check_serial,
    check_tpm,
)
from gateway.doctor.diagnosis import Diagnosis
from gateway.doctor.machine import (
    check_clock,
    check_disk,
    check_load,
    check_memory,
    check_outbox,
    check_temperature,
    check_versions,
)
from gateway.doctor.models import check_models
from gateway.doctor.network import check_brokers
from gateway.doctor.vault import check_vault
from gateway.errors import ConfigError
from gateway.health import probes
from gateway.wire.plain import so_many

_NEED_CONFIG: Final = ("disk", "outbox", "vault", "models", "brokers")
_NOTHING: Final = Config(gateway=Gateway(id="unknown"), sources={}, pipelines={}, vault=Vault(level="software"))


def examine(
    config_file: Path | None, machine: Machine, *, environment: Mapping[str, str] | None = None
) -> Iterator[Diagnosis]:
    """Yield the outcome of each check as soon as it is there.

    Without a usable configuration only the machine is examined, and the rest is skipped.
    """
    yield check_clock(probes.clock())
    yield check_memory(probes.memory(machine.root / "proc"))
    yield check_temperature(probes.temperature(machine.root / "sys"))
    yield check_load(probes.load())
    yield from check_versions()
    yield check_tpm(machine)
    config = None
    if config_file is None:
        yield Diagnosis("configuration", "skipped", "none given", "say `gateway doctor --config FILE`")
    else:
        reading = _reading(config_file, environment, require_files=True)
        yield _configuration(config_file, reading)
        # A missing secret is told above; it should not hide how the disk and the devices are.
        config = reading.config or _reading(config_file, environment, require_files=False).config
    if config is None:
        for check in _NEED_CONFIG:
            yield Diagnosis(check, "skipped", "needs a usable configuration")
    yield from _devices(config or _NOTHING, machine)
    if config is not None:
        yield from check_disk(config)
        yield check_outbox(config)
        yield from check_vault(config)
        yield from check_models(config)
        yield from check_brokers(config)


def _devices(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    yield check_rules(config, machine)
    yield from check_accelerator(config, machine)
    yield from check_cameras(config, machine)
    yield from try_cameras(config)
    yield from check_serial(config, machine)
    yield from check_iio(config, machine)


def _reading(file: Path, environment: Mapping[str, str] | None, *, require_files: bool) -> Reading:
    try:
        return read(file, require_files=require_files, environment=os.environ if environment is None else environment)
    except ConfigError as error:
        return Reading(None, [Problem(1, 1, "", str(error))])


def _configuration(file: Path, reading: Reading) -> Diagnosis:
    see = f"see `gateway config validate {file}`"
    if reading.config is None:
        first = reading.errors[0]
        return Diagnosis(
            "configuration", "failed", f"{so_many(len(reading.errors), 'error')}, the first: {first.message}", see
        )
    if reading.warnings:
        first = reading.warnings[0]
        found = f"{file} can be used; {so_many(len(reading.warnings), 'warning')}, the first: {first.message}"
        return Diagnosis("configuration", "warning", found, see)
    return Diagnosis("configuration", "ok", f"{file} has no mistakes")
