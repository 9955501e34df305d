"""`export` and `import`."""

import sys
import time
from pathlib import Path
from typing import IO, Any, Final

import click

from cloud_bridge.analysis import export_rollups
from cloud_bridge.commands.options import NOT_ALL, Place, filtered, placed, put, say, wanted
from cloud_bridge.commands.rollups import GRAINS
from cloud_bridge.commands.wholefile import whole_file
from cloud_bridge.control import import_question
from cloud_bridge.errors import TransferError
from cloud_bridge.parquet import is_parquet, parquet_lines
from cloud_bridge.seal import Seal
from cloud_bridge.store.base import RollupFilter
from cloud_bridge.transfer import EMPTY, chunks, export_ndjson, export_parquet, foreign_to
from gateway.wire.plain import so_many
from gateway.wire.times import rfc3339

_NS_PER_SECOND: Final = 1_000_000_000
_NAMED: Final = {".parquet": "parquet", ".ndjson": "ndjson", ".jsonl": "ndjson"}
_FOREIGN: Final = frozenset({".csv", ".tsv", ".xlsx", ".gz", ".zip", ".zst"})


@click.command()
@placed
@filtered
@click.option("--format", "form", type=click.Choice(["ndjson", "parquet"]), help="Default: as the file's name says.")
@click.option(
    "--rollups",
    "by",
    is_flag=False,
    flag_value="hour",
    type=click.Choice(list(GRAINS)),
    help="Sums by hour (or day) of capture instead of records, as Parquet.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; default, and `-`: standard output."
)
@click.option("--json", "as_json", is_flag=True, help="Say as JSON what was written; needs --output.")
def export(
    file: Path | None,
    store_url: str | None,
    *,
    form: str | None,
    by: str | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write records to a file, for `import` (NDJSON) or for analysis elsewhere (Parquet)."""
    output = None if output == Path("-") else output
    form = _format(form if by is None else "parquet", output)
    if by is not None:
        _export_rollups(Place(file, store_url), by, output, options, as_json=as_json)
        return
    if output is None and (form == "parquet" or as_json):
        raise click.UsageError("--output is needed here")
    with Place(file, store_url).reader() as store:
        if output is None:
            export_ndjson(store, wanted(options), sys.stdout.buffer, at=_now())
            sys.stdout.buffer.flush()
            return
        with whole_file(output) as part:
            if form == "parquet":
                count = export_parquet(store, wanted(options), part)
            else:
                with part.open("wb") as out:
                    count = export_ndjson(store, wanted(options), out, at=_now())
    if as_json:
        put({"records": count, "file": str(output)})
    else:
        say(f"{so_many(count, 'record')} written to {output}")


def _format(asked: str | None, output: Path | None) -> str:
    """Return the format: what was asked for, or what the name of the file says; the two must not contradict."""
    suffix = output.suffix.lower() if output is not None else ""
    if suffix in _FOREIGN:
        raise click.UsageError(f"{suffix} is not written; name the file .ndjson or .parquet")
    named = _NAMED.get(suffix)
    if asked is not None and named is not None and asked != named:
        raise click.UsageError(f"{output} would hold {asked}; name it .{asked}")
    return asked or named or "ndjson"


def _export_rollups(place: Place, by: str, output: Path | None, options: dict[str, Any], *, as_json: bool) -> None:
    if output is None:
        raise click.UsageError("--output is needed here")
    if options["record_class"] or options["kind"]:
        raise click.UsageError("rollups know gateway and pipeline, but neither --class nor --kind")
    wanted = RollupFilter(
        GRAINS[by],
        gateway=options["gateway"],
        pipeline=options["pipeline"],
        since_s=None if options["since"] is None else options["since"] // _NS_PER_SECOND,
        until_s=None if options["until"] is None else options["until"] // _NS_PER_SECOND,
    )
    with place.reader() as store, whole_file(output) as part:
        count = export_rollups(store, wanted, part)
    if as_json:
        put({"rollups": count, "file": str(output)})
    else:
        say(f"{so_many(count, 'rollup')} written to {output}")


@click.command("import")
@placed
@click.argument("source", type=click.File("rb"))
@click.option("--gateway", help="Of which gateway lines are that name none.")
@click.option("--allow-partial", is_flag=True, help="Also from a file that was cut short or changed: what is there.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def import_(
    file: Path | None,
    store_url: str | None,
    *,
    source: IO[bytes],
    gateway: str | None,
    allow_partial: bool,
    as_json: bool,
) -> None:
    """Bring records in from a file (NDJSON or Parquet) of `gateway outbox export` or `export`. Twice does no harm.

    A file that is not whole is refused before anything is imported, with exit status 1. From a pipe that is known only
    at its end: what came is imported, with exit status 3.
    """
    if (foreign := foreign_to(source)) and not (foreign == EMPTY and allow_partial):
        raise TransferError(f"{source.name}: {foreign}. Nothing was imported")
    if not allow_partial and not is_parquet(source) and (unsound := _unsound(source)):
        raise TransferError(
            f"{unsound[0]}. Nothing was imported; what is there comes in with --allow-partial, and the whole file later"
        )
    inserted = duplicates = 0
    first_line = 1
    bad: list[str] = []
    seal = Seal()
    pieces = parquet_lines(source) if is_parquet(source) else map(seal.checked, chunks(source))
    with Place(file, store_url).writer() as ask:
        for lines in pieces:
            said = ask(import_question(lines, first_line, gateway))
            first_line += len(lines)
            inserted += said.inserted
            duplicates += said.duplicates
            bad.extend(said.bad)
    partial = seal.finish()
    for problem in [*partial, *bad][:20]:
        say(problem, err=True)
    if seal.unsealed:
        say(
            f"without an end mark, whether more is missing cannot be told: {so_many(seal.unsealed, 'record')}", err=True
        )
    if as_json:
        put(
            {
                "imported": inserted,
                "known": duplicates,
                "bad": len(bad) + len(partial),
                "whole": not partial,
                "unsealed": seal.unsealed,
                "problems": [*partial, *bad][:20],
            }
        )
    else:
        problems = so_many(len(bad) + len(partial), "problem")
        say(f"{so_many(inserted, 'record')} imported, {duplicates} known already, {problems}")
    if bad or (partial and not allow_partial):
        raise SystemExit(NOT_ALL)


def _unsound(source: IO[bytes]) -> list[str]:
    """Return what is wrong with a file as a whole, as far as it can be read twice."""
    if not source.seekable():
        return []
    seal = Seal()
    for lines in chunks(source):
        seal.checked(lines)
    source.seek(0)
    return seal.finish()


def _now() -> str:
    return rfc3339(time.time_ns())
