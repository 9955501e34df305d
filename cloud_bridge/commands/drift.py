"""`drift`: how far devices are from what their releases were trained on, and what is to be done about it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from prometheus_client import CollectorRegistry

from cloud_bridge.commands.options import MAX_NUMBER, Place, Time, placed, put, say, say_line
from cloud_bridge.config import Config
from cloud_bridge.drift import book
from cloud_bridge.drift.book import Finding, Proposal
from cloud_bridge.drift.component import open_watch
from cloud_bridge.drift.evaluation import ACCEPTED, reference_of
from cloud_bridge.drift.judging import ORDER, worst
from cloud_bridge.drift.metrics import DriftMetrics
from cloud_bridge.drift.plain import event_plain, finding_plain, proposal_plain
from cloud_bridge.drift.watch import open_database, told, window_of
from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.database import Transaction
from gateway.wire.plain import so_many
from gateway.wire.times import rfc3339

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one line for each.")


@contextmanager
def desk(file: Path | None, store_url: str | None) -> Iterator[tuple[Config, Transaction]]:
    """Open what is known of drift, in one transaction."""
    config = Place(file, store_url).config()
    database = open_database(config)
    try:
        with database.transaction() as tx:
            yield config, tx
    finally:
        database.close()


@click.group()
def drift() -> None:
    """Drift: inputs and answers that move away from what a release was trained on."""


@drift.command()
@placed
@click.option("--gateway", help="Of this gateway only.")
@click.option("--model", help="Of this model only.")
@click.option("--level", type=click.Choice(ORDER), help="At least this level.")
@_as_json
def status(
    file: Path | None,
    store_url: str | None,
    *,
    gateway: str | None,
    model: str | None,
    level: str | None,
    as_json: bool,
) -> None:
    """Show the latest look at every device and cohort; the worst first."""
    with desk(file, store_url) as (_, tx):
        found = [
            one
            for one in book.findings(tx).values()
            if (model is None or one.key.model == model)
            and (gateway is None or one.key.subject.partition("/")[0] == gateway)
            and (level is None or ORDER.index(one.standing.level) >= ORDER.index(level))
        ]
        waiting = [one for one in book.proposals(tx) if one.state in ("open", "running")]
    found.sort(key=lambda one: -ORDER.index(one.standing.level))
    if as_json:
        for one in found:
            put(finding_plain(one))
        return
    if not found:
        say("nothing compared yet: a look needs measures with histograms, and a baseline or a first window")
    for one in found:
        say_line(finding_line(one))
    if found:
        say(f"worst: {worst([one.standing.level for one in found])}")
    for proposal in waiting:
        _say_proposal(proposal)


@drift.command()
@placed
@click.option("--since", type=Time(), default=0, help="Since 2026-01-31T12:00:00Z, or 15m, 6h, 2d ago.")
@click.option("--limit", type=click.IntRange(1, MAX_NUMBER), default=50, show_default=True, help="The latest so many.")
@_as_json
def history(file: Path | None, store_url: str | None, *, since: int, limit: int, as_json: bool) -> None:
    """Show which levels were reached when, and what followed, in the order of time."""
    with desk(file, store_url) as (_, tx):
        found = book.events(tx, since_ns=since, limit=limit)
    for one in reversed(found):
        if as_json:
            put(event_plain(one))
        else:
            say(f"{rfc3339(one.at_ns)} {one.kind} {one.model} {one.version} {one.subject}: {one.detail}")


@drift.command()
@placed
@_as_json
def proposals(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """Show what is proposed to be trained again."""
    with desk(file, store_url) as (_, tx):
        found = book.proposals(tx)
    for one in found:
        if as_json:
            put(proposal_plain(one))
        else:
            _say_proposal(one)


@drift.command()
@placed
@click.argument("proposal")
def dismiss(file: Path | None, store_url: str | None, *, proposal: str) -> None:
    """Put a proposal aside; the next alarm makes another."""
    with desk(file, store_url) as (_, tx):
        if not book.settle(tx, proposal, "dismissed", "by an operator", time.time_ns()):
            raise ConfigError(f"there is no proposal {proposal}; `cloud-bridge drift proposals` lists them")
    say(f"{proposal}: dismissed")


@drift.command()
@placed
@click.argument("gateway")
@click.argument("pipeline")
def accept(file: Path | None, store_url: str | None, *, gateway: str, pipeline: str) -> None:
    """Take what a pipeline shows now as what is usual there: it is held against that from now on.

    For a sensor that was mounted otherwise, a camera that was moved, a machine that was overhauled.
    """
    now_ns = time.time_ns()
    with desk(file, store_url) as (config, tx):
        window = window_of(config.drift, now_ns)
        accepted = []
        for device, slices in book.devices_since(tx, window.since_s):
            if (device.gateway, device.pipeline) != (gateway, pipeline):
                continue
            blocks = [statistics for _, statistics in slices]
            reference = reference_of(device, blocks, config.drift.min_samples, now_ns, ACCEPTED)
            if reference.statistics:
                book.put_reference(tx, reference)
                book.note(tx, device, "accepted", f"by an operator: {', '.join(sorted(reference.statistics))}", now_ns)
                accepted.append(device)
    if not accepted:
        raise ConfigError(
            f"{gateway}/{pipeline} has not shown {config.drift.min_samples} samples of anything in the last"
            f" {config.drift.window_hours:g} hours; `cloud-bridge drift status` says what came"
        )
    for device in accepted:
        say(f"{device.subject} with {device.model} {device.version}: accepted")


@drift.command()
@placed
def look(file: Path | None, store_url: str | None) -> None:
    """Look now, instead of waiting for the running bridge to do so."""
    place = Place(file, store_url)
    with place.reader() as reader, open_watch(place.config(), reader, DriftMetrics(CollectorRegistry())) as watch:
        found = watch.look()
    say(f"{so_many(len(found.findings), 'comparison')}, {len(found.changed)} with another level than before")


def finding_line(one: Finding) -> str:
    """Put a finding for people."""
    key = one.key
    return f"{one.standing.level:8} {key.model} {key.version} {key.scope} {key.subject} {told(one)}"


def _say_proposal(one: Proposal) -> None:
    """Print a proposal for people, with what to do about it."""
    line = f"proposal {one.id} ({one.state}): train {one.model} {one.version} again, {one.why}"
    if one.detail:
        line += f"; {one.detail}"
    say_line(line)
    if one.state == "open":
        say_line(f"  cloud-bridge training retrain {one.model} --from {one.version}")
