"""`gateway status`."""

from pathlib import Path
from zoneinfo import ZoneInfo

import click
import msgspec

from gateway.commands.linkusage import forecast, show_usage, show_waiting
from gateway.commands.options import config_option, json_option
from gateway.commands.output import coloured, duration, print_json, print_table, say, say_line, size
from gateway.commands.security import show_identity, show_vault
from gateway.configload import InvalidConfigError, read
from gateway.control import ask, socket_path
from gateway.errors import ControlError
from gateway.report import GatewayStatus, LinkReport


@click.command("status")
@config_option
@click.option("--socket", type=click.Path(path_type=Path), help="The control socket, instead of a configuration.")
@json_option
def command(config_file: Path, socket: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell how the running gateway is; exit status 3 if none is running."""
    path = socket if socket is not None else _socket_of(config_file)
    answer = ask(path, "status")
    if as_json:
        print_json(answer)
        return
    try:
        status = msgspec.convert(answer, GatewayStatus)
    except msgspec.ValidationError as error:
        message = f"the gateway at {path} answers in a way this version does not know: {error}; restart it"
        raise ControlError(message) from error
    _show(status)


def _socket_of(config_file: Path) -> Path:
    reading = read(config_file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    return socket_path(reading.config.gateway)


def _show(status: GatewayStatus) -> None:
    up = duration(status.uptime_seconds)
    say(f"{status.gateway}: up {up}, version {status.version}, pid {status.pid}, mode {status.mode}")
    say_line(f"cloud:  {_link(status.cloud)}{f', {status.partition}' if status.partition else ''}")
    say_line(f"local:  {_link(status.local)}")
    if status.vault is not None:
        show_vault(status.vault)
    if status.identity is not None:
        show_identity(status.identity)
    if status.metrics_url:
        say(f"metrics: {status.metrics_url}")
    for name, reason in sorted(status.components.items()):
        say_line(f"{coloured('failed')}: {name}: {reason}")
    say()
    print_table(
        ("PIPELINE", "STATE", "SOURCE", "MODEL", "BACKEND", "ANSWERS", "PER S", "DROPPED", "OPEN"),
        [
            (
                each.pipeline,
                f"waits ({each.waits_for})" if each.waits_for else each.state,
                each.source_state,
                f"{each.model.name}@{each.model.version}" if each.model else "-",
                each.backend or "-",
                str(each.inferences),
                f"{each.inferences_per_second:.1f}",
                str(sum(each.dropped.values())),
                str(each.open_events),
            )
            for each in status.pipelines
        ],
    )
    for each in status.pipelines:
        if each.last_error:
            say_line(f"  {each.pipeline}: {each.last_error}")
    say(f"\noutbox: {status.outbox.state}, epoch {status.outbox.epoch}")
    if status.outbox.reason:
        say_line(f"  {status.outbox.reason}")
    if status.outbox.disk_full:
        say(f"  {coloured('failed')}: DISK FULL: routine records give way, critical ones wait; make room on its disk")
    print_table(
        ("CLASS", "WAITING", "SIZE", "OLDEST", "FORECAST", "EVICTED", "SENT"),
        [
            (
                name,
                str(each.depth),
                size(each.size_bytes),
                duration(each.oldest_age_seconds),
                forecast(each),
                str(each.evicted),
                size(each.sent_bytes),
            )
            for name, each in status.outbox.classes.items()
        ],
    )
    if status.link_usage is not None:
        zone = ZoneInfo(status.time_zone)
        show_waiting(status.link_usage, {name: each.depth for name, each in status.outbox.classes.items()}, zone)
        say()
        show_usage(status.link_usage, zone)


def _link(link: LinkReport | None) -> str:
    if link is None:
        return "not configured"
    broker = f" {link.broker}" if link.broker else ""
    reason = f" ({link.reason})" if link.reason else ""
    return f"{link.state}{broker}{reason}"
