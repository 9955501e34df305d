"""`gateway outbox`: look into the store, of a running gateway or not, and take records out by hand."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
import msgspec

from gateway.commands.options import config_option, json_option
from gateway.commands.output import duration, print_json, print_table, size
from gateway.config import Config
from gateway.configload import InvalidConfigError, read
from gateway.control import ask, socket_path
from gateway.errors import ControlError, OutboxError
from gateway.outbox import inspect
from gateway.outbox.stats import OutboxStats
from gateway.report import GatewayStatus
from gateway.wire.messages import CLASSES, RecordClass

_file_option = click.option(
    "--file", type=click.Path(path_type=Path), help="The outbox database, without any configuration."
)


@click.group("outbox")
def command() -> None:
    """Look into the records that wait for the cloud."""


@command.command("status")
@config_option
@_file_option
@json_option
def status(config_file: Path, file: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell depth, size and age of each class; of a running gateway also when it will be full."""
    config = _config(config_file) if file is None else None
    path = file or _outbox_file(config)
    found = inspect.status(path, config.outbox.classes if config is not None else None)
    forecast = _forecast(config)
    if as_json:
        figures = {name: asdict(each) | {"full_in_seconds": forecast.get(name)} for name, each in found.classes.items()}
        print_json({"file": str(path), **asdict(found), "classes": figures})
        return
    _show(path, found, forecast)


def _forecast(config: Config | None) -> dict[RecordClass, float | None]:
    """Ask a running gateway when each class will be full; only it knows the rates."""
    if config is None:
        return {}
    try:
        answer = msgspec.convert(ask(socket_path(config.gateway), "status"), GatewayStatus)
    except (ControlError, msgspec.ValidationError):
        return {}
    return {name: each.full_in_seconds for name, each in answer.outbox.classes.items()}


def _show(path: Path, found: OutboxStats, forecast: dict[RecordClass, float | None]) -> None:
    click.echo(f"{path}: epoch {found.epoch}, {size(found.file_bytes + found.wal_bytes)} on disk")
    print_table(
        ("CLASS", "WAITING", "OF", "SIZE", "OF", "OLDEST", "FULL IN", "FROM", "TO"),
        [
            (
                name,
                str(each.rows),
                str(each.max_rows),
                size(each.disk_bytes),
                size(each.max_bytes),
                duration(each.oldest_age_seconds),
                duration(forecast.get(name)),
                str(each.lowest) if each.rows else "-",
                str(each.highest) if each.rows else "-",
            )
            for name, each in found.classes.items()
        ],
    )


@command.command("export")
@config_option
@_file_option
@click.option("--gateway", help="The id of the gateway, which is part of every key; needed with --file.")
@click.option("--class", "classes", type=click.Choice(CLASSES), multiple=True, help="Only this class; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write here instead of to stdout.")
def export(
    config_file: Path, file: Path | None, gateway: str | None, classes: tuple[RecordClass, ...], out: Path | None
) -> None:
    """Write the waiting records as NDJSON; they stay in the outbox until the cloud has them."""
    if file is not None and gateway is None:
        raise click.UsageError("--file needs --gateway: the id is part of every key")
    config = _config(config_file) if file is None else None
    path = file or _outbox_file(config)
    name = gateway or (config.gateway.id if config is not None else "")
    chosen = classes or CLASSES
    if out is None:
        count = inspect.export_ndjson(path, sys.stdout.buffer, chosen, gateway=name)
    else:
        count = _export_to(out, path, chosen, name)
    click.echo(f"{count} records", err=True)


def _export_to(out: Path, path: Path, classes: tuple[RecordClass, ...], gateway: str) -> int:
    """Write beside the target and rename, so that a stick pulled out early holds no half export under that name."""
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as target:
            count = inspect.export_ndjson(path, target, classes, gateway=gateway)
            target.flush()
            os.fsync(target.fileno())
        part.replace(out)
    except OSError as error:
        raise OutboxError(f"{out}: {error.strerror or error}; make room there, or choose another place") from error
    return count


def _config(config_file: Path) -> Config:
    reading = read(config_file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    return reading.config


def _outbox_file(config: Config | None) -> Path:
    assert config is not None
    return config.outbox.file or config.gateway.state_directory / "outbox.db"
