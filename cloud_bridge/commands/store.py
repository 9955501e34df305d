"""`store check`, `backup` and `restore`."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import click

from cloud_bridge.commands.options import NOT_ALL, Place, placed, put, say
from cloud_bridge.companions import companions_of, not_in_databases
from cloud_bridge.errors import BridgeError, ConfigError, TransferError
from cloud_bridge.store.backup import Beside, back_up, restore
from cloud_bridge.store.opening import sqlite_path
from gateway.wire.plain import so_many

_DAY_SECONDS = 86_400


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
    place = Place(file, store_url)
    days = place.config().retention.rollup_hourly_days
    hours_from_s = int(time.time_ns() / 1e9 - days * _DAY_SECONDS) if days is not None else 0
    with place.reader() as reader:
        found = reader.check(hours_from_s=max(0, hours_from_s))
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
            say(f"{one.rule}: {one.where}: {one.detail}")
        verdict = so_many(len(found), "violation") if found else "sound"
        say(f"{so_many(records, 'record')} in {so_many(streams, 'stream')}: {verdict}")
    if found:
        raise SystemExit(NOT_ALL)


def _file(place: Place) -> Path:
    url = place.config().store.url
    path = sqlite_path(url)
    if path is None:
        raise ConfigError(
            "the store is in PostgreSQL, which has tools of its own: pg_dump --format=custom --file=FILE DATABASE,"
            " and pg_restore --clean --dbname=DATABASE FILE. Everything but files of keys is in that database;"
            " docs/operations.md tells more"
        )
    return path


@click.command()
@placed
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def backup(file: Path | None, store_url: str | None, *, target: Path, as_json: bool) -> None:
    """Copy a SQLite store and the databases beside it while the bridge runs; each copy is checked.

    TARGET is the store; beside it come TARGET.fleet.db (twins, labels, rollouts), TARGET.drift.db, and
    TARGET.identity.db (devices, content keys, the registry's memory), as far as the bridge has them. Files of keys
    are no databases: what is to be kept besides is told.
    """
    place = Place(file, store_url)
    path, config = _file(place), place.config()
    if not path.exists():
        raise ConfigError(f"there is no store {path}")
    # The store last: what was taken from it into the others is then in its copy for certain.
    wanted = [(one.file, one.beside(target)) for one in companions_of(config) if one.file.exists()]
    wanted.append((path, target))
    for _, copy in wanted:
        if copy.exists():
            raise TransferError(f"{copy} is there already; give another name, or move it away")
    made: dict[Path, int] = {}
    try:
        for source, copy in wanted:
            made[copy] = back_up(source, copy)
    except BridgeError:
        for copy in made:
            copy.unlink(missing_ok=True)
        raise
    besides = not_in_databases(config)
    if as_json:
        put(
            {
                "file": str(target),
                "bytes": sum(made.values()),
                "files": {str(copy): size for copy, size in made.items()},
                "not_included": {str(directory): what for directory, what in besides.items()},
            }
        )
        return
    for (source, copy), size in zip(wanted, made.values(), strict=True):
        say(f"{source} copied to {copy}: {size / 1e6:.1f} MB")
    _tell_besides(besides)


def _tell_besides(besides: Mapping[Path, str]) -> None:
    if not besides:
        return
    say("not in it are files that are no databases; keep a copy of them apart, as safe as the keys in them:")
    for directory, what in besides.items():
        say(f"  {directory}: {what}")
    places = " ".join(shlex.quote(str(directory.absolute()).lstrip("/")) for directory in besides)
    say(f"  umask 077 && tar --create --file=bridge-keys.tar --exclude='*.db*' --directory=/ {places}")


@click.command("restore")
@placed
@click.argument("source", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def restore_(file: Path | None, store_url: str | None, *, source: Path, as_json: bool) -> None:
    """Put a backup in the place of a SQLite store and the databases beside it; the bridge must be stopped.

    What is there is kept aside. Devices that were revoked since the backup are not, afterwards: revoke them again.
    """
    place = Place(file, store_url)
    path, companions = _file(place), companions_of(place.config())
    there = [one for one in companions if one.beside(source).exists()]
    aside = restore(source, path, beside=[Beside(one.beside(source), one.file, one.table) for one in there])
    left = [one for one in companions if one not in there and one.file.exists()]
    if as_json:
        put(
            {
                "store": str(path),
                "aside": None if aside is None else str(aside),
                "files": [*(str(one.file) for one in there), str(path)],
                "left": [str(one.file) for one in left],
            }
        )
        return
    for one in there:
        say(f"{one.file} is now what {one.beside(source)} was")
    kept = f"; what was there is kept as {aside}" if aside is not None else ""
    say(f"{path} is now what {source} was{kept}")
    for one in left:
        say(f"{one.file} is as it was: there is no {one.beside(source)}")
    if any(one.name == "identity" for one in there):
        say("devices that were revoked since the backup was made are not any more: revoke them again")
