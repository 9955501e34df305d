"""`gateway outbox`: look into the store, of a running gateway or not, and take records out by hand."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import click
import msgspec

from gateway.commands.linkusage import forecast, show_usage, show_waiting
from gateway.commands.options import config_option, json_option
from gateway.commands.output import duration, print_json, print_table, say, size
from gateway.config import Config
from gateway.configload import InvalidConfigError, read
from gateway.control import ask, socket_path
from gateway.errors import ControlError, OutboxError
from gateway.metering.ledger import FILE_NAME as LEDGER_NAME
from gateway.metering.ledger import ReadOnlyLedger
from gateway.metering.meter import Meter
from gateway.metering.telling import report_of
from gateway.outbox import inspect
from gateway.outbox.damage import HEADER
from gateway.outbox.export import Exported, NdjsonFile, ParquetFile
from gateway.outbox.export import export as export_to
from gateway.outbox.stats import OutboxStats
from gateway.report import ClassReport, GatewayStatus, LinkUsageReport
from gateway.uplink.gate import is_metered
from gateway.wire.messages import CLASSES, RecordClass
from gateway.wire.plain import so_many
from gateway.wire.times import rfc3339

_file_option = click.option(
    "--file", type=click.Path(path_type=Path), help="The outbox database, without any configuration."
)
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_AGO: Final = re.compile(r"(\d+) ?(s|min|h|d)")


@click.group("outbox")
def command() -> None:
    """Look into the records that wait for the cloud."""


# ---- status --------------------------------------------------------------------------------------------


@command.command("status")
@config_option
@_file_option
@json_option
def status(config_file: Path, file: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell depth, size and age of each class; of a running gateway also the rates, and a forecast."""
    config = _config(config_file) if file is None else None
    path = file or _outbox_file(config)
    found = inspect.status(path, config.outbox.classes if config is not None else None)
    running = _running(config)
    usage = _usage(config, running)
    if as_json:
        live = running.outbox.classes if running is not None else {}
        print_json(
            {
                "file": str(path),
                **asdict(found),
                "classes": {name: asdict(each) | _flow(live.get(name)) for name, each in found.classes.items()},
                "running": running is not None,
                "rate_over_seconds": running.outbox.rate_over_seconds if running is not None else None,
                "link_usage": usage,
            }
        )
        return
    _show(path, found, running)
    if config is not None and config.outbox.ballast_bytes and not found.ballast:
        say(
            f"ballast: missing, {size(config.outbox.ballast_bytes)} are to be kept back for a full disk: free space on "
            "its file system, or lower outbox.ballast_bytes"
        )
    if usage is not None and config is not None:
        zone = ZoneInfo(config.gateway.time_zone)
        show_waiting(usage, {name: each.rows for name, each in found.classes.items()}, zone)
        if config.metering.features or config.metering.classes:
            say()
            show_usage(usage, zone)


def _running(config: Config | None) -> GatewayStatus | None:
    """Ask a running gateway: only it knows the rates."""
    if config is None:
        return None
    try:
        return msgspec.convert(ask(socket_path(config.gateway), "status"), GatewayStatus)
    except (ControlError, msgspec.ValidationError):
        return None


def _usage(config: Config | None, running: GatewayStatus | None) -> LinkUsageReport | None:
    """Say how the budgets stand; without a running gateway, as its file has them."""
    if running is not None:
        return running.link_usage
    if config is None or not config.cloud.brokers:
        return None
    brokers = config.cloud.brokers
    meter = Meter(
        config.metering,
        ZoneInfo(config.gateway.time_zone),
        ReadOnlyLedger(config.gateway.state_directory / LEDGER_NAME),
        metered=is_metered(brokers[0], brokers),
    )
    return report_of(meter.usage())


def _flow(live: ClassReport | None) -> dict[str, Any]:
    """Lay what the running gateway says over what the file cannot tell: null where nobody knows."""
    if live is None:
        return {"incoming": None, "outgoing": None, "full_in_seconds": None, "empty_in_seconds": None}
    return {
        "incoming": {
            "rows_per_second": live.incoming_rows_per_second,
            "bytes_per_second": live.incoming_bytes_per_second,
        },
        "outgoing": {
            "rows_per_second": live.outgoing_rows_per_second,
            "bytes_per_second": live.outgoing_bytes_per_second,
        },
        "full_in_seconds": live.full_in_seconds,
        "empty_in_seconds": live.empty_in_seconds,
        "refusing": live.refusing,
        "evicted": live.evicted,
    }


def _show(path: Path, found: OutboxStats, running: GatewayStatus | None) -> None:
    say(f"{path}: epoch {found.epoch}, {size(found.file_bytes + found.wal_bytes)} on disk")
    live = running.outbox.classes if running is not None else {}
    print_table(
        ("CLASS", "WAITING", "OF", "SIZE", "OF", "OLDEST", "IN/S", "OUT/S", "FORECAST", "FROM", "TO"),
        [
            (
                name,
                str(each.rows),
                str(each.max_rows),
                size(each.disk_bytes),
                size(each.max_bytes),
                duration(each.oldest_age_seconds),
                f"{live[name].incoming_rows_per_second:.1f}" if name in live else "-",
                f"{live[name].outgoing_rows_per_second:.1f}" if name in live else "-",
                forecast(live.get(name)),
                str(each.lowest) if each.rows else "-",
                str(each.highest) if each.rows else "-",
            )
            for name, each in found.classes.items()
        ],
    )
    if found.aside_files:
        say(
            f"{path}.aside: {so_many(found.aside_files, 'record')} that could not travel, {size(found.aside_bytes)}; "
            "take them along for `cloud-bridge import`"
        )
    if running is not None:
        over = duration(running.outbox.rate_over_seconds)
        say(f"rates and forecasts: averaged over {over}, at the rates of now")
    else:
        say("rates and forecasts: the gateway is not running, or was not asked; nothing comes or goes")


# ---- export --------------------------------------------------------------------------------------------


@command.command("export")
@config_option
@_file_option
@click.option("--gateway", help="The id of the gateway, which is part of every key; needed with --file.")
@click.option("--class", "classes", type=click.Choice(CLASSES), multiple=True, help="Only this class; may be repeated.")
@click.option("--since", help="Only what was recorded since: `90min`, `6h`, `2d`, or a time as 2026-01-31T12:00+01:00.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The same as TARGET.")
@click.argument("target", required=False, type=click.Path(path_type=Path, dir_okay=False))
def export(  # noqa: PLR0917 - click passes by name
    config_file: Path,
    file: Path | None,
    gateway: str | None,
    classes: tuple[RecordClass, ...],
    since: str | None,
    out: Path | None,
    target: Path | None,
) -> None:
    """Write the waiting records to TARGET, NDJSON or (named .parquet) Parquet; `-`, or none, is standard output.

    The records stay in the outbox until the cloud has them. `cloud-bridge import` takes the file, once, however often
    it is given, and notices a copy that was cut short.
    """
    if file is not None and gateway is None:
        raise click.UsageError("--file needs --gateway: the id is part of every key")
    if out is not None and target is not None:
        raise click.UsageError("give TARGET or --out, not both")
    config = _config(config_file) if file is None else None
    path = file or _outbox_file(config)
    name = gateway or (config.gateway.id if config is not None else "")
    chosen = classes or CLASSES
    since_ns = _since_ns(since)
    place = out or target
    if place == Path("-"):
        place = None

    def records() -> Iterator[inspect.Chunk]:
        return inspect.chunks_of(path, chosen, since_ns=since_ns)

    if place is None:
        done = export_to(records(), NdjsonFile(sys.stdout.buffer, name, _now()))
        sys.stdout.buffer.flush()
    else:
        total = sum(each.rows for key, each in inspect.status(path).classes.items() if key in chosen)
        with _progress(total) as progress:
            done = _export_to(place, records, name, progress)
    say(f"{so_many(done.records, 'record')}", err=True)
    if done.damaged:
        say(f"left out, for they are damaged on the disk: {so_many(done.damaged, 'row')}", err=True)
        sys.exit(1)


def _export_to(
    target: Path, records: Callable[[], Iterator[inspect.Chunk]], gateway: str, progress: Callable[[int], None]
) -> Exported:
    """Write beside the target and rename, so that a stick pulled out early holds no half export under that name."""
    _refuse_database(target)
    part = target.with_name(target.name + ".part")
    try:
        if target.suffix == ".parquet":
            done = export_to(records(), ParquetFile(part, gateway), progress=progress)
        else:
            with part.open("wb") as stream:
                done = export_to(records(), NdjsonFile(stream, gateway, _now()), progress=progress)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
    except OSError as error:
        with suppress(OSError):  # it takes room that there is none of, and is no export
            part.unlink()
        raise OutboxError(f"{target}: {error.strerror or error}; make room there, or choose another place") from error
    return done


def _refuse_database(target: Path) -> None:
    """Keep an export from taking the place of an outbox, its own or another one, through a slip of the name."""
    try:
        if not target.is_file():
            return
        with target.open("rb") as present:
            is_database = present.read(len(HEADER)) == HEADER
    except OSError as error:
        raise OutboxError(f"{target}: {error.strerror or error}; choose another place") from error
    if is_database:
        raise OutboxError(f"{target} is a database, which an export would replace; give another name")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; records that go meanwhile make it end early."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    with click.progressbar(length=total, label="records", show_pos=True, file=sys.stderr) as bar:
        yield lambda count: bar.update(count - bar.pos)


def _since_ns(since: str | None) -> int | None:
    if since is None:
        return None
    now = datetime.now(UTC)
    found = _AGO.fullmatch(since.strip())
    if found is not None:
        moment = now - timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    else:
        try:
            moment = datetime.fromisoformat(since.strip())
        except ValueError as error:
            raise click.UsageError(f"--since {since!r}: write 90min, 6h, 2d, or a time as 2026-01-31T12:00Z") from error
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1e9)


def _now() -> str:
    return rfc3339(int(datetime.now(UTC).timestamp() * 1e9))


# ---- both ------------------------------------------------------------------------------------------------


def _config(config_file: Path) -> Config:
    reading = read(config_file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    return reading.config


def _outbox_file(config: Config | None) -> Path:
    assert config is not None
    return config.outbox.file or config.gateway.state_directory / "outbox.db"
