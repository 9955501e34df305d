"""`deadletters`: what could not be used, and what to do about it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from cloud_bridge.commands.options import (
    FAILED,
    MAX_NUMBER,
    NOT_ALL,
    Cursor,
    Place,
    Time,
    placed,
    put,
    say,
    say_line,
    tell_more,
)
from cloud_bridge.commands.words import letter_line, letter_plain
from cloud_bridge.control import Question
from cloud_bridge.cursors import cursor_of
from cloud_bridge.values import REASONS, LetterPlace, StoredLetter

_PAGE = 100


@click.group()
def deadletters() -> None:
    """Look at messages and bodies that could not be used; give them another try, or drop them."""


@deadletters.command("list")
@placed
@click.option("--reason", type=click.Choice(REASONS), help="With this reason only.")
@click.option("--gateway", help="Of records of this gateway only.")
@click.option("--since", type=Time(), help="Come since 2026-01-31T12:00:00Z, or 15m, 6h, 2d ago.")
@click.option("--until", type=Time(), help="Come last before then.")
@click.option("--before", type=Cursor(LetterPlace), help="Go on from where a page ended; it tells how.")
@click.option("--limit", type=click.IntRange(1, MAX_NUMBER), default=50, show_default=True, help="The latest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each.")
def list_(
    file: Path | None,
    store_url: str | None,
    *,
    since: int | None,
    until: int | None,
    limit: int,
    as_json: bool,
    **options: Any,
) -> None:
    """List dead letters, the latest first."""
    with Place(file, store_url).reader() as store:
        found = store.dead_letters(since_ns=since, until_ns=until, limit=limit + 1, **options)
        for stored in found[:limit]:
            if as_json:  # one after the other: payloads may be large
                put(letter_plain(store.dead_letter(stored.id) or stored))
            else:
                say_line(letter_line(stored))
    if len(found) > limit:
        tell_more(cursor_of(found[limit - 1].place))


@deadletters.command()
@placed
@click.argument("number", type=click.IntRange(1, MAX_NUMBER))
@click.option("--raw", is_flag=True, help="The payload alone, as it came; not to a terminal.")
def show(file: Path | None, store_url: str | None, *, number: int, raw: bool) -> None:
    """Show one dead letter with its payload."""
    with Place(file, store_url).reader() as store:
        stored = store.dead_letter(number)
    if stored is None:
        say(f"error: there is no dead letter {number}", err=True)
        raise SystemExit(FAILED)
    if raw:
        if sys.stdout.isatty():
            raise click.UsageError("what came may drive a terminal: send it to a file or a program, or leave out --raw")
        click.echo(stored.letter.payload, nl=False)
    else:
        put(letter_plain(stored))


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One line of JSON for each."),
        click.option("--reason", type=click.Choice(REASONS), help="With --all: with this reason only."),
        click.option("--all", "everything", is_flag=True, help="All of them."),
        click.argument("numbers", type=click.IntRange(1, MAX_NUMBER), nargs=-1),
    ):
        command = option(command)
    return placed(command)


@deadletters.command("replay")
@_chosen
def replay_(
    file: Path | None,
    store_url: str | None,
    *,
    numbers: Sequence[int],
    everything: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Decode dead letters again, e.g. after an upgrade; those that can be used now are stored and removed."""
    place = Place(file, store_url)
    found = _numbers(place, numbers, reason) if everything else numbers
    _settle(place, lambda number: Question(ask="replay", letter_id=number), found, as_json=as_json)


@deadletters.command("discard")
@_chosen
@click.option("--only-copies", is_flag=True, help="With --all: also the only copies of records of gateways.")
def discard_(
    file: Path | None,
    store_url: str | None,
    *,
    numbers: Sequence[int],
    everything: bool,
    only_copies: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Remove dead letters unused.

    `--all` passes over batches of records that the bridge could not read: their gateways have let the records go.
    """
    place = Place(file, store_url)
    found = numbers
    if everything:
        found = _numbers(place, numbers, reason, pass_over=lambda one: one.letter.is_custody and not only_copies)
    _settle(place, lambda number: Question(ask="discard", letter_id=number), found, as_json=as_json)


def _numbers(
    place: Place,
    numbers: Sequence[int],
    reason: str | None,
    *,
    pass_over: Callable[[StoredLetter], bool] = lambda _: False,
) -> list[int]:
    if numbers:
        raise click.UsageError("give numbers or --all, not both")
    found: list[int] = []
    passed: list[int] = []
    before: LetterPlace | None = None
    with place.reader() as store:
        while page := store.dead_letters(limit=_PAGE, reason=reason, before=before):
            for stored in page:
                (passed if pass_over(stored) else found).append(stored.id)
            before = page[-1].place
    if passed:
        named = " ".join(str(number) for number in sorted(passed)[:20])
        say(
            f"{len(passed)} stay: the only copy of records of gateways; replay them, or --only-copies: {named}",
            err=True,
        )
    return sorted(set(found))


def _settle(place: Place, question: Callable[[int], Question], numbers: Sequence[int], *, as_json: bool) -> None:
    left = 0
    with place.writer() as ask:
        for number in numbers:
            said = ask(question(number))
            left += not said.settled
            if as_json:
                put({"id": number, "settled": said.settled, "detail": said.detail})
            else:
                say(f"{number}: {'' if said.settled else 'stays: '}{said.detail}")
    if left:
        raise SystemExit(NOT_ALL)
