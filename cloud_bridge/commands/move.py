"""`export` and `import`."""

import sys
from pathlib import Path
from typing import IO, Any

import click

from cloud_bridge.commands.options import NOT_ALL, Place, filtered, placed, put, wanted
from cloud_bridge.control import import_question
from cloud_bridge.errors import TransferError
from cloud_bridge.transfer import chunks, export_ndjson, export_parquet


@click.command()
@placed
@filtered
@click.option("--format", "form", type=click.Choice(["ndjson", "parquet"]), default="ndjson", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; default: standard output.")
@click.option("--json", "as_json", is_flag=True, help="Say as JSON what was written; needs --output.")
def export(
    file: Path | None, store_url: str | None, *, form: str, output: Path | None, as_json: bool, **options: Any
) -> None:
    """Write records to a file, for `import` (NDJSON) or for analysis elsewhere (Parquet)."""
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


@click.command("import")
@placed
@click.argument("source", type=click.File("rb"))
@click.option("--gateway", help="Of which gateway lines are that name none.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def import_(file: Path | None, store_url: str | None, *, source: IO[bytes], gateway: str | None, as_json: bool) -> None:
    """Bring records in from a file written by `gateway outbox export` or by `export`. Twice does no harm."""
    inserted = duplicates = 0
    first_line = 1
    bad: list[str] = []
    with Place(file, store_url).writer() as ask:
        for lines in chunks(source):
            said = ask(import_question(lines, first_line, gateway))
            first_line += len(lines)
            inserted += said.inserted
            duplicates += said.duplicates
            bad.extend(said.bad)
    for problem in bad[:20]:
        click.echo(problem, err=True)
    if as_json:
        put({"imported": inserted, "known": duplicates, "bad": len(bad), "problems": bad[:20]})
    else:
        click.echo(f"{inserted} records imported, {duplicates} known already, {len(bad)} lines not usable")
    if bad:
        raise SystemExit(NOT_ALL)
