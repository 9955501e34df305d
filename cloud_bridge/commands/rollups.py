"""`rollups`: sums by hour and by day, also of what retention has removed."""

from pathlib import Path

import click

from cloud_bridge.commands.options import MAX_NUMBER, Cursor, Place, Time, placed, put, say_line, tell_more
from cloud_bridge.commands.words import rollup_line, rollup_plain
from cloud_bridge.cursors import cursor_of
from cloud_bridge.store.base import RollupFilter, RollupPlace
from cloud_bridge.store.rolling import DAY_SECONDS, HOUR_SECONDS
from cloud_bridge.values import Rollup

GRAINS = {"hour": HOUR_SECONDS, "day": DAY_SECONDS}
_NS_PER_SECOND = 1_000_000_000


@click.command()
@placed
@click.option("--by", type=click.Choice(list(GRAINS)), default="hour", show_default=True, help="Sums of what.")
@click.option("--gateway", help="Of this gateway only.")
@click.option("--pipeline", help="Of this pipeline only.")
@click.option("--label", help="Of this label only; '' for the sums of measures over all labels.")
@click.option("--since", type=Time(), help="Captured since 2026-01-31T12:00:00Z, or 15m, 6h, 2d ago.")
@click.option("--until", type=Time(), help="Captured before then.")
@click.option("--before", type=Cursor(RollupPlace), help="Go on from where a page ended; it tells how.")
@click.option("--limit", type=click.IntRange(1, MAX_NUMBER), default=50, show_default=True, help="The latest so many.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each.")
def rollups(
    file: Path | None,
    store_url: str | None,
    *,
    by: str,
    gateway: str | None,
    pipeline: str | None,
    label: str | None,
    since: int | None,
    until: int | None,
    before: RollupPlace | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show sums of events and measures by hour or day of capture, in the order of time."""
    wanted = RollupFilter(
        GRAINS[by],
        gateway=gateway,
        pipeline=pipeline,
        label=label,
        since_s=None if since is None else since // _NS_PER_SECOND // GRAINS[by] * GRAINS[by],
        until_s=None if until is None else -(-until // _NS_PER_SECOND),
        before=before,
    )
    with Place(file, store_url).reader() as store:
        found = store.rollups(wanted, limit=limit + 1)
    shown = found[:limit][::-1]
    for one in shown:
        if as_json:
            put(rollup_plain(one))
        else:
            say_line(rollup_line(one))
    if len(found) > limit:
        tell_more(cursor_of(place_of_rollup(shown[0])))


def place_of_rollup(one: Rollup) -> RollupPlace:
    """Return where a rollup stands in the list."""
    return RollupPlace(one.start_s, one.gateway, one.pipeline, one.label)
