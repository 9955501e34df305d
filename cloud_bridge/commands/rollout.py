"""`rollout`: give a release to the fleet in waves, and look at how it goes."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec

from cloud_bridge.commands.options import MAX_NUMBER, Place, Share, placed, put, say
from cloud_bridge.commands.rollout_words import report_lines, rollout_line
from cloud_bridge.config import Config
from cloud_bridge.rollout.comparison import compare
from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.plain import report_plain, rollout_plain
from cloud_bridge.rollout.plan import Arm
from cloud_bridge.rollout.registered import open_releases, open_revoked
from cloud_bridge.rollout.releases import Release, release_of
from cloud_bridge.rollout.service import Deed, RolloutDesk, plan_from, thresholds_from
from cloud_bridge.rollout.waves import labels_of, waves_of
from cloud_bridge.store.base import Reader
from cloud_bridge.store.opening import open_reader
from cloud_bridge.twins.database import open_fleet
from gateway.wire.messages import os_pipeline
from gateway.wire.topics import NAME

_PERIOD: Final = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one line for each.")


class _Period(click.ParamType[float]):
    """A length of time as seconds."""

    name = "period"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = _PERIOD.fullmatch(str(value))
        return (
            float(int(match[1]) * _SECONDS[match[2]])
            if match
            else self.fail(f"{value!r} is not like 30m or 2h", param, ctx)
        )


@dataclass(frozen=True, slots=True)
class _Work:
    config: Config
    desk: RolloutDesk
    reader: Reader


@contextmanager
def _opened(file: Path | None, store_url: str | None) -> Iterator[_Work]:
    config = Place(file, store_url).config()
    reader = open_reader(config.store)
    database = open_fleet(config.store)
    try:
        desk = RolloutDesk(database, reader, time.time_ns, open_releases(config), open_revoked(config))
        yield _Work(config, desk, reader)
    finally:
        database.close()
        reader.close()


@click.group()
def rollout() -> None:
    """Give releases to the fleet in waves, and take back what is worse."""


@rollout.command()
@placed
@click.option("--model", metavar="NAME@VERSION", help="The release.")
@click.option("--pipeline", help="The pipeline that is to run it.")
@click.option("--os", "os_version", metavar="VERSION", help="Not a model but an image of the system; with --target.")
@click.option("--target", metavar="COMPATIBLE", help="With --os: which devices it is for, as in sluice-uefi-amd64.")
@click.option(
    "--waves",
    default="1, 10%, rest",
    show_default=True,
    help='In order: a number, a share, labels ("site=a&ring=b"), rest.',
)
@click.option("--soak", type=_Period(), help="How long each wave is watched after its devices run it, as in 30m.")
@click.option("--baseline", metavar="NAME@VERSION", help="What devices go back to that have not said what they ran.")
@click.option(
    "--ab",
    "arms",
    multiple=True,
    metavar="KEY=VALUE=NAME@VERSION",
    help="Devices with this label get this release instead; may be given again.",
)
@click.option(
    "--on-halt", type=click.Choice(["wave", "all"]), default="wave", show_default=True, help="What is taken back."
)
@click.option("--max-failing-share", type=Share(), help="Of a wave; more halts.")
@click.option("--no-gates", is_flag=True, help="Go on whatever happens: for giving back an older release to all.")
@click.option("--candidate", is_flag=True, help="Give out a candidate that nobody has approved.")
@_as_json
def create(file: Path | None, store_url: str | None, *, as_json: bool, **options: Any) -> None:
    """Begin a rollout. The running bridge gives out the first wave."""
    pipeline, release = _what(options)
    with _opened(file, store_url) as work:
        if not work.config.gives_rollouts:
            raise RolloutError(
                "rollouts are off, so nothing would happen: add `rollout: {enabled: true}`, or `registry`"
            )
        thresholds = thresholds_from(work.config.rollout)
        if options["max_failing_share"] is not None:
            thresholds = msgspec.structs.replace(thresholds, max_failing_share=options["max_failing_share"])
        if options["no_gates"]:
            thresholds = msgspec.structs.replace(thresholds, enabled=False)
        plan = plan_from(
            work.config.rollout,
            pipeline=pipeline,
            release=release,
            waves=waves_of(options["waves"]),
            baseline=None if options["baseline"] is None else release_of(options["baseline"]),
            arms=[_arm(text) for text in options["arms"]],
            soak_seconds=options["soak"],
            on_halt=_on_halt(options["on_halt"]),
            thresholds=thresholds,
        )
        made = work.desk.create(plan, allow_candidate=options["candidate"])
    _show(rollout_plain(made), rollout_line(made), as_json=as_json)


@rollout.command("list")
@placed
@click.option("--limit", type=click.IntRange(1, MAX_NUMBER), default=20, show_default=True, help="The latest so many.")
@_as_json
def list_(file: Path | None, store_url: str | None, *, limit: int, as_json: bool) -> None:
    """Show rollouts, the latest first."""
    with _opened(file, store_url) as work:
        found = work.desk.list(limit)
    for one in found:
        _show(rollout_plain(one), rollout_line(one), as_json=as_json)


@rollout.command()
@placed
@click.argument("rollout_id", metavar="ID")
@click.option("--compare", "with_figures", is_flag=True, help="Sum up what each release did on its devices.")
@_as_json
def status(file: Path | None, store_url: str | None, *, rollout_id: str, with_figures: bool, as_json: bool) -> None:
    """Show where the devices of a rollout stand, what the gates found, and its history."""
    with _opened(file, store_url) as work:
        report = work.desk.report(rollout_id)
        comparison = None
        if with_figures or report.rollout.plan.arms:
            found = report.rollout
            members = [one.member for one in report.stands]
            if members:
                comparison = compare(work.reader, found.plan.pipeline, members, found.created_ns)
    _show(report_plain(report, comparison), "\n".join(report_lines(report, comparison)), as_json=as_json)


def _deed(deed: Deed, words: str) -> None:
    @rollout.command(deed, help=words)
    @placed
    @click.argument("rollout_id", metavar="ID")
    @click.option("--reason", default="", help="Kept in the history.")
    @_as_json
    def command(file: Path | None, store_url: str | None, *, rollout_id: str, reason: str, as_json: bool) -> None:
        with _opened(file, store_url) as work:
            moved = work.desk.act(rollout_id, deed, reason=reason)
        _show(rollout_plain(moved), rollout_line(moved), as_json=as_json)


_deed("pause", "Begin no further wave; the present one is watched on.")
_deed("resume", "Go on after a pause; after a halt, give the wave out again.")
_deed("abort", "End a rollout and give every device back what it ran before.")


def _what(options: Mapping[str, Any]) -> tuple[str, Release | None]:
    """Return what stands for the pipeline, and the release: of a model, or of the system."""
    version, target = options["os_version"], options["target"]
    if version is None and target is None:
        pipeline, model = options["pipeline"], options["model"]
        if pipeline is None:
            raise RolloutError("no pipeline is named; give --pipeline, or --os with --target")
        if NAME.fullmatch(pipeline) is None:
            raise RolloutError(f"{pipeline!r} is no name of a pipeline; see `cloud-bridge fleet list`")
        return pipeline, None if model is None else release_of(model)
    if version is None or target is None or any(options[name] for name in ("pipeline", "model", "arms")):
        raise RolloutError("an image of the system is given by --os VERSION --target COMPATIBLE, without a model")
    return os_pipeline(target), release_of(f"{target}@{version}")


def _arm(text: str) -> Arm:
    label, _, release = text.rpartition("=")
    return Arm(labels_of([label]), release_of(release))


def _on_halt(word: str) -> Literal["wave", "all"]:
    return "all" if word == "all" else "wave"


def _show(plain: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        put(plain)
    else:
        say(words)
