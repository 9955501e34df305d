"""`gateway doctor`."""

import sys
from pathlib import Path

import click

from gateway import logs
from gateway.commands.options import config_option, json_option
from gateway.commands.output import coloured, print_json, say
from gateway.config import Log
from gateway.doctor import Diagnosis, examine, worst
from gateway.doctor.devices import Machine


@click.command("doctor")
@config_option
@json_option
@click.pass_context
def command(context: click.Context, config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Examine clock, disk, accelerator, cameras, brokers, TPM, models and versions, and say what to do.

    Exit status 1 if a check failed; warnings and skipped checks leave it 0.
    """
    logs.configure(Log(level="error"))  # what is wrong is told as a check
    given = context.get_parameter_source("config_file") is not click.core.ParameterSource.DEFAULT
    diagnoses: list[Diagnosis] = []
    for diagnosis in examine(config_file if given or config_file.exists() else None, Machine()):
        diagnoses.append(diagnosis)
        if not as_json:
            _show(diagnosis)
    if as_json:
        print_json({"verdict": worst(diagnoses), "checks": diagnoses})
    sys.exit(1 if worst(diagnoses) == "failed" else 0)


def _show(diagnosis: Diagnosis) -> None:
    say(f"{coloured(diagnosis.verdict.ljust(8))} {diagnosis.check}: {diagnosis.found}")
    if diagnosis.remedy and diagnosis.verdict in ("warning", "failed"):
        say(f"         → {diagnosis.remedy}")
