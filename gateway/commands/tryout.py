"""`gateway try`: what a pipeline would tell of a recording, before it is deployed."""

import time
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from gateway import logs
from gateway.commands.options import Number, config_option, json_option
from gateway.commands.output import print_json_line, say
from gateway.configload import InvalidConfigError, read
from gateway.tryout import Outcome, Told, try_out
from gateway.wire.plain import so_many


@click.command("try")
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--pipeline", required=True, help="Its name in the configuration.")
@config_option
@click.option("--at", "began", metavar="TIME", help="When it begins, as 2026-01-31T22:00:00+01:00; default: now.")
@click.option("--rate-hz", type=Number(0, min_open=True), help="Of samples or pictures that do not say.")
@click.option(
    "--directory",
    "directories",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Look for releases here first.",
)
@json_option
def command(
    *,
    recording: Path,
    pipeline: str,
    config_file: Path,
    began: str | None,
    rate_hz: float | None,
    directories: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Play a RECORDING (a video, CSV or npz) through one pipeline and print the events that it would send.

    Nothing is sent, stored or sealed, no device is opened, and a gateway that runs does not notice. The model runs on
    the CPU, from a release in clear. Rules see the time of the recording, however fast it is played.
    """
    reading = read(config_file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    logs.configure(msgspec.structs.replace(reading.config.log, level="error"))
    outcome = try_out(
        reading.config,
        pipeline,
        recording,
        _put if as_json else _show,
        began_ns=time.time_ns() if began is None else _nanoseconds(began),
        rate_hz=rate_hz,
        directories=directories,
    )
    if as_json:
        print_json_line({"summary": msgspec.to_builtins(outcome)})
    else:
        _sum_up(outcome)


def _nanoseconds(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.UsageError(f"--at {text!r} is no time like 2026-01-31T22:00:00+01:00") from error
    return int((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1e9)


def _put(told: Told) -> None:
    print_json_line({"offset_seconds": told.offset_seconds, "event": msgspec.to_builtins(told.event)})


def _show(told: Told) -> None:
    event = told.event
    minutes, seconds = divmod(told.offset_seconds, 60)
    more = [f"rule {event.rule}"]
    more += [f"zone {event.zone}"] if event.zone else []
    more += [f"count {event.count}"] if event.count > 1 else []
    more += [f"channel {event.channel}"] if event.channel is not None else []
    what = f"{event.label} {event.score:.2f} (peak {event.peak_score:.2f})"
    say(f"{int(minutes):3}:{seconds:06.3f}  {event.phase:6}  {what}  {', '.join(more)}  {event.event_id}")


def _sum_up(outcome: Outcome) -> None:
    say(
        f"{so_many(outcome.events, 'event')} in {outcome.recorded_seconds:g} s; "
        f"{outcome.model.name} {outcome.model.version} on {outcome.backend} looked at "
        f"{so_many(outcome.samples, 'sample')}, {outcome.mean_ms:g} ms each, "
        f"{outcome.slowest_ms:g} ms at most",
        err=True,
    )
    if outcome.pictures:
        say(f"{so_many(outcome.pictures, 'picture')} would travel as evidence", err=True)
    for reason, count in outcome.dropped.items():
        say(f"dropped: {count} ({reason})", err=True)
