"""`status`, `records`, `events`, `gaps`."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from cloud_bridge.commands.options import Place, Time, filtered, placed, put, wanted
from cloud_bridge.commands.words import (
    event_line,
    event_plain,
    gap_line,
    gap_plain,
    record_line,
    status_lines,
    status_plain,
)
from cloud_bridge.store.base import Reader, RecordFilter
from cloud_bridge.transfer import as_line
from cloud_bridge.values import StoredRecord

_POLL_SECONDS: Final = 0.25


@click.command()
@placed
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """Show the fleet, what the store holds, and how far each stream is complete."""
    with Place(file, store_url).reader() as store:
        plain = status_plain(store)
    if as_json:
        put(plain)
    else:
        click.echo("\n".join(status_lines(plain)))


@click.command()
@placed
@filtered
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="The latest so many.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each record, as `import` reads them.")
def records(
    file: Path | None, store_url: str | None, *, limit: int, follow: bool, as_json: bool, **options: Any
) -> None:
    """Show records in the order of receipt."""
    show = as_line if as_json else record_line
    chosen = wanted(options)
    with Place(file, store_url).reader() as store:
        newest = store.records(RecordFilter(), limit=1)
        found = store.records(chosen, limit=limit, with_blobs=as_json)[::-1]
        for record in found:
            click.echo(show(record))
        if follow:
            last_id = max((one.id for one in (*newest, *found)), default=0)
            for record in _following(store, replace(chosen, after_id=last_id)):
                click.echo(show(record))


def _following(store: Reader, chosen: RecordFilter) -> Iterator[StoredRecord]:
    seen = store.change_counter() - 1
    while True:
        counter = store.change_counter()
        if counter == seen:
            time.sleep(_POLL_SECONDS)
            continue
        seen = counter
        while page := store.records(chosen, limit=500, with_blobs=True):
            yield from page
            chosen = replace(chosen, after_id=page[-1].id)


@click.command()
@placed
@click.option("--gateway", help="Of this gateway only.")
@click.option("--pipeline", help="Of this pipeline only.")
@click.option("--label", help="With this label only.")
@click.option("--since", type=Time(), help="Changed since 2026-01-31T12:00:00Z, or 15m, 6h, 2d ago.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The latest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each event.")
def events(file: Path | None, store_url: str | None, *, as_json: bool, since: int | None, **options: Any) -> None:
    """Show events in their latest phase, in the order in which they were first heard of."""
    with Place(file, store_url).reader() as store:
        for stored in store.events(since_ns=since, **options)[::-1]:
            if as_json:
                put(event_plain(stored))
            else:
                click.echo(event_line(stored))


@click.command()
@placed
@click.option("--gateway", help="Of this gateway only.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The latest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each gap.")
def gaps(file: Path | None, store_url: str | None, *, gateway: str | None, limit: int, as_json: bool) -> None:
    """Show which sequence numbers will never come, and why."""
    with Place(file, store_url).reader() as store:
        for gap in store.gaps(gateway=gateway, limit=limit):
            if as_json:
                put(gap_plain(gap))
            else:
                click.echo(gap_line(gap))
