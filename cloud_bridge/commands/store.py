"""`store check`, `backup` and `restore`."""

from pathlib import Path

import click

from cloud_bridge.commands.options import NOT_ALL, Place, placed, put
from cloud_bridge.errors import ConfigError
from cloud_bridge.store.backup import back_up, restore
from cloud_bridge.store.opening import sqlite_path


@click.group()
def store() -> None:
    """Look after the store."""


@store.command()
@placed
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def check(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """Check that the store is as it must be; the bridge may run meanwhile.

    Marks, rows, gaps and counters of every stream tell the same story; no record and no phase of an event is there
    twice; every filter finds its records; days are the sums of their hours. Every row is read. Status 3 if something
    is not so.
    """
    with Place(file, store_url).reader() as reader:
        found = reader.check()
        streams, records = len(reader.streams()), reader.counts().records
    if as_json:
        put(
            {
                "sound": not found,
                "streams": streams,
                "records": records,
                "violations": [{"rule": one.rule, "where": one.where, "detail": one.detail} for one in found],
            }
        )
    else:
        for one in found:
            click.echo(f"{one.rule}: {one.where}: {one.detail}")
        click.echo(f"{records} records in {streams} streams: {f'{len(found)} violations' if found else 'sound'}")
    if found:
        raise SystemExit(NOT_ALL)


def _file(place: Place) -> Path:
    url = place.config().store.url
    path = sqlite_path(url)
    if path is None:
        raise ConfigError(
            "the store is in PostgreSQL, which has tools of its own: pg_dump --format=custom --file=FILE DATABASE,"
            " and pg_restore --clean --dbname=DATABASE FILE; docs/operations.md tells more"
        )
    return path


@click.command()
@placed
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def backup(file: Path | None, store_url: str | None, *, target: Path, as_json: bool) -> None:
    """Copy a SQLite store to a file while the bridge runs; the copy is checked before it gets its name."""
    path = _file(Place(file, store_url))
    if not path.exists():
        raise ConfigError(f"there is no store {path}")
    size = back_up(path, target)
    if as_json:
        put({"file": str(target), "bytes": size})
    else:
        click.echo(f"{path} copied to {target}: {size / 1e6:.1f} MB")


@click.command("restore")
@placed
@click.argument("source", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def restore_(file: Path | None, store_url: str | None, *, source: Path, as_json: bool) -> None:
    """Put a backup in the place of a SQLite store; the bridge must be stopped, and the present store is kept aside."""
    path = _file(Place(file, store_url))
    aside = restore(source, path)
    if as_json:
        put({"store": str(path), "aside": None if aside is None else str(aside)})
    else:
        kept = f"; what was there is kept as {aside}" if aside is not None else ""
        click.echo(f"{path} is now what {source} was{kept}")
