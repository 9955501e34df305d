"""`gateway schema`: the JSON schemas of the wire contract."""

from importlib.resources import files
from pathlib import Path

import click

from gateway.commands.output import formatted, print_json, say
from gateway.wire.messages import MESSAGES, json_schema
from gateway.wire.plain import so_many


@click.command("schema")
@click.argument("name", type=click.Choice(list(MESSAGES)), required=False)
@click.option("--all", "everything", is_flag=True, help="Print all schemas as one JSON object.")
@click.option("--sample", "with_sample", is_flag=True, help="Print the frozen sample of NAME instead.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write one NAME.schema.json each here.")
def command(name: str | None, everything: bool, with_sample: bool, out: Path | None) -> None:  # noqa: FBT001 - flags
    """Print the JSON schema (draft 2020-12) of the message NAME; without NAME, list the messages."""
    if with_sample and name is None:
        raise click.UsageError("--sample needs the NAME of a message")
    names = [name] if name is not None else list(MESSAGES)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for each in names:
            (out / f"{each}.schema.json").write_bytes(formatted(json_schema(each)))
        say(f"{so_many(len(names), 'schema')} written to {out}", err=True)
    elif name is not None and with_sample:
        say((files("gateway.wire") / "samples" / f"{name}.json").read_text(encoding="utf-8"), nl=False)
    elif name is not None:
        print_json(json_schema(name))
    elif everything:
        print_json({each: json_schema(each) for each in names})
    else:
        for each in names:
            say(each)
