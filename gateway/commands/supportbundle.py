"""`gateway support-bundle`."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

from gateway import logs
from gateway.appliance.errors import ApplianceError
from gateway.appliance.places import Places
from gateway.appliance.support import Manifest, Sources, collect, output_of
from gateway.commands.options import config_option, json_option
from gateway.commands.output import print_json, say, size
from gateway.config import Log
from gateway.doctor import Diagnosis, examine
from gateway.doctor.devices import Machine
from gateway.wire.plain import so_many


@click.command("support-bundle")
@config_option
@click.option(
    "--output", type=click.Path(path_type=Path), help="The file to write, or `-`; default: support-TIME.tar.gz."
)
@click.option("--doctor/--no-doctor", default=True, show_default=True, help="Also run all checks; opens the cameras.")
@json_option
def command(config_file: Path, output: Path | None, doctor: bool, as_json: bool) -> None:  # noqa: FBT001 - by name
    """Collect status, configuration, checks, logs and versions into one file, without records and without secrets."""
    logs.configure(Log(level="error"))
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    sources = Sources(
        places=Places.of_image(),
        config_file=config_file,
        examine=partial(_checks, config_file) if doctor else None,
        now_ns=time.time_ns,
        run=output_of,
    )
    if output == Path("-"):
        collect(sources, sys.stdout.buffer)
        return
    # The home of an appliance is read-only.
    here = Path() if os.access(".", os.W_OK) else Path(tempfile.gettempdir())
    file = output if output is not None else here / f"support-{now}.tar.gz"
    try:
        # For whoever runs this alone: no secrets are in it, but names and addresses of a site are.
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as out:
            manifest = collect(sources, out)
    except OSError as error:
        raise ApplianceError(f"{file}: {error.strerror or error}; name another place with --output") from error
    if as_json:
        print_json({"file": file, "manifest": manifest})
    else:
        _show(file, manifest)


def _checks(config_file: Path) -> Iterator[Diagnosis]:
    return examine(config_file if config_file.exists() else None, Machine())


def _show(file: Path, manifest: Manifest) -> None:
    there = [entry for entry in manifest.files if not entry.missing]
    removed = f"{so_many(manifest.secrets_removed, 'secret')} removed"
    say(f"{file}: {size(file.stat().st_size)}, {so_many(len(there), 'file')}, {removed}")
    for entry in manifest.files:
        if entry.missing:
            say(f"  without {entry.name}: {entry.missing}")
