"""`status`, `records`, `events`, `gaps`."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from cloud_bridge.commands.options import (
    MAX_NUMBER,
    Cursor,
    Place,
    Time,
    filtered,
    placed,
    put,
    say_line,
    tell_more,
    wanted,
)
from cloud_bridge.commands.words import (
    event_line,
    event_plain,
    gap_line,
    gap_plain,
    record_line,
    status_lines,
    status_plain,
)
from cloud_bridge.cursors import cursor_of
from cloud_bridge.store.base import Reader, RecordFilter
from cloud_bridge.transfer import as_line
from cloud_bridge.values import GAP_SOURCES, GapPlace, StoredRecord

_POLL_SECONDS: Final = 0.25


@click.command()
@placed
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """Show the fleet, what the store holds, and how far each stream is complete."""
    with Place(file, store_url).reader() as store:
        plain = status_plain(store, time.time_ns())
    if as_json:
        put(plain)
    else:
        for line in status_lines(plain):
            say_line(line)


@click.command()
@placed
@filtered
@click.option("--before", type=click.IntRange(1, MAX_NUMBER), help="Go on from where a page ended; it tells how.")
@click.option("--limit", type=click.IntRange(0, MAX_NUMBER), default=20, show_default=True, help="The latest so many.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each record, as `import` reads them.")
def records(
    file: Path | None,
    store_url: str | None,
    *,
    before: int | None,
    limit: int,
    follow: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show records in the order of receipt."""
    show = _put_record if as_json else _say_record
    chosen = replace(wanted(options), before_id=before)
    with Place(file, store_url).reader() as store:
        newest = store.records(RecordFilter(), limit=1)
        page = store.records(chosen, limit=limit + 1, with_blobs=as_json)
        found = page[:limit][::-1]
        for record in found:
            show(record)
        if len(page) > limit and found and not follow:
            tell_more(found[0].id)
        if follow:
            last_id = max((one.id for one in (*newest, *found)), default=0)
            for record in _following(store, replace(chosen, before_id=None, after_id=last_id)):
                show(record)


def _put_record(record: StoredRecord) -> None:
    click.echo(as_line(record))


def _say_record(record: StoredRecord) -> None:
    say_line(record_line(record))


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
@click.option("--until", type=Time(), help="Changed last before then.")
@click.option("--before", type=click.IntRange(1, MAX_NUMBER), help="Go on from where a page ended; it tells how.")
@click.option("--limit", type=click.IntRange(1, MAX_NUMBER), default=20, show_default=True, help="The latest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each event.")
def events(
    file: Path | None,
    store_url: str | None,
    *,
    since: int | None,
    until: int | None,
    before: int | None,
    limit: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Show events in their latest phase, in the order in which they were first heard of."""
    with Place(file, store_url).reader() as store:
        found = store.events(since_ns=since, until_ns=until, before_id=before, limit=limit + 1, **options)
    for stored in found[:limit][::-1]:
        if as_json:
            put(event_plain(stored))
        else:
            say_line(event_line(stored))
    if len(found) > limit:
        tell_more(found[limit - 1].id)


@click.command()
@placed
@click.option("--gateway", help="Of this gateway only.")
@click.option("--source", type=click.Choice(GAP_SOURCES), help="Told so by this only.")
@click.option("--since", type=Time(), help="Noted since 2026-01-31T12:00:00Z, or 15m, 6h, 2d ago.")
@click.option("--until", type=Time(), help="Noted before then.")
@click.option("--before", type=Cursor(GapPlace), help="Go on from where a page ended; it tells how.")
@click.option("--limit", type=click.IntRange(1, MAX_NUMBER), default=100, show_default=True, help="The latest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each gap.")
def gaps(
    file: Path | None,
    store_url: str | None,
    *,
    since: int | None,
    until: int | None,
    limit: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Show which sequence numbers will never come, and why."""
    with Place(file, store_url).reader() as store:
        found = store.gaps(since_ns=since, until_ns=until, limit=limit + 1, **options)
    for gap in found[:limit]:
        if as_json:
            put(gap_plain(gap))
        else:
            say_line(gap_line(gap))
    if len(found) > limit and (place := found[limit - 1].place) is not None:
        tell_more(cursor_of(place))
