"""`export` and `import`."""

import sys
from pathlib import Path
from typing import IO, Any, Final

import click

from cloud_bridge.analysis import export_rollups
from cloud_bridge.commands.options import NOT_ALL, Place, filtered, placed, put, wanted
from cloud_bridge.commands.rollups import GRAINS
from cloud_bridge.control import import_question
from cloud_bridge.errors import TransferError
from cloud_bridge.parquet import is_parquet, parquet_lines
from cloud_bridge.seal import Seal
from cloud_bridge.store.base import RollupFilter
from cloud_bridge.transfer import chunks, export_ndjson, export_parquet

_NS_PER_SECOND: Final = 1_000_000_000


@click.command()
@placed
@filtered
@click.option("--format", "form", type=click.Choice(["ndjson", "parquet"]), default="ndjson", show_default=True)
@click.option(
    "--rollups",
    "by",
    is_flag=False,
    flag_value="hour",
    type=click.Choice(list(GRAINS)),
    help="Sums by hour (or day) of capture instead of records, as Parquet.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; default: standard output.")
@click.option("--json", "as_json", is_flag=True, help="Say as JSON what was written; needs --output.")
def export(
    file: Path | None,
    store_url: str | None,
    *,
    form: str,
    by: str | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write records to a file, for `import` (NDJSON) or for analysis elsewhere (Parquet)."""
    if by is not None:
        _export_rollups(Place(file, store_url), by, output, options, as_json=as_json)
        return
    if output is None and (form == "parquet" or as_json):
        raise click.UsageError("--output is needed here")
    with Place(file, store_url).reader() as store:
        if output is None:
            count = export_ndjson(store, wanted(options), sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        if form == "parquet":
            count = export_parquet(store, wanted(options), output)
        else:
            try:
                with output.open("wb") as out:
                    count = export_ndjson(store, wanted(options), out)
            except OSError as error:
                raise TransferError(f"{output}: {error.strerror or error}") from error
    if as_json:
        put({"records": count, "file": str(output)})
    else:
        click.echo(f"{count} records written to {output}")


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
    with place.reader() as store:
        count = export_rollups(store, wanted, output)
    if as_json:
        put({"rollups": count, "file": str(output)})
    else:
        click.echo(f"{count} rollups written to {output}")


@click.command("import")
@placed
@click.argument("source", type=click.File("rb"))
@click.option("--gateway", help="Of which gateway lines are that name none.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def import_(file: Path | None, store_url: str | None, *, source: IO[bytes], gateway: str | None, as_json: bool) -> None:
    """Bring records in from a file (NDJSON or Parquet) of `gateway outbox export` or `export`. Twice does no harm."""
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
    bad.extend(seal.finish())
    for problem in bad[:20]:
        click.echo(problem, err=True)
    if as_json:
        put({"imported": inserted, "known": duplicates, "bad": len(bad), "problems": bad[:20]})
    else:
        problems = f"{len(bad)} problem{'' if len(bad) == 1 else 's'}"
        click.echo(f"{inserted} records imported, {duplicates} known already, {problems}")
    if bad:
        raise SystemExit(NOT_ALL)
