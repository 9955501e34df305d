"""`gateway models`: what releases there are, and whether their files are what the manifests say."""

import sys
from pathlib import Path

import click

from gateway.commands.options import DEFAULT_CONFIG, json_option
from gateway.commands.output import coloured, print_json, print_table, say, size
from gateway.configload import InvalidConfigError, read
from gateway.doctor.models import is_sealed, sealed_directory, verify
from gateway.errors import ModelError
from gateway.inference.bundle import Release, ReleaseStore
from gateway.verification import limit_this_process, verify_release
from gateway.wire.plain import so_many

_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="SLUICE_CONFIG",
    help=f"Look where this configuration says, too [default: {DEFAULT_CONFIG}, if it is there].",
)
_directory_option = click.option(
    "--directory",
    "directories",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Look here, too.",
)


@click.group("models")
def command() -> None:
    """List and check model releases."""


@command.command("list")
@_config_option
@_directory_option
@json_option
def list_models(config_file: Path | None, directories: tuple[Path, ...], as_json: bool) -> None:  # noqa: FBT001 - click
    """List the releases that pipelines can name."""
    store = _store(config_file, directories)
    rows = []
    for listed in store.releases():
        try:
            rows.append(_described(store.find(f"{listed.name}@{listed.version}")))
        except ModelError as error:
            rows.append({"name": listed.name, "version": listed.version, "error": str(error)})
    if as_json:
        print_json(rows)
        return
    print_table(
        ("MODEL", "VERSION", "TARGETS", "SIZE", "WEIGHTS", "SUMMARY"),
        [
            (
                str(row["name"]),
                str(row["version"]),
                str(row.get("targets", "-")),
                size(int(str(row.get("size_bytes", 0)))),
                "-" if "sealed" not in row else "sealed" if row["sealed"] else "in clear",
                str(row.get("summary", row.get("error", ""))),
            )
            for row in rows
        ],
    )


def _described(release: Release) -> dict[str, object]:
    manifest = release.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "summary": manifest.summary,
        "targets": ",".join(artefact.target for artefact in manifest.artefacts),
        "size_bytes": sum(artefact.size_bytes for artefact in manifest.artefacts),
        "directory": str(release.directory),
        "sealed": is_sealed(release),
    }


@command.command("check")
@click.argument("names", nargs=-1)
@_config_option
@_directory_option
@json_option
def check_models(
    names: tuple[str, ...],
    config_file: Path | None,
    directories: tuple[Path, ...],
    as_json: bool,  # noqa: FBT001 - click passes by name
) -> None:
    """Compare the files of releases (NAME or NAME@VERSION; default: all) with the digests in their manifests."""
    store = _store(config_file, directories)
    wanted = names or tuple(f"{listed.name}@{listed.version}" for listed in store.releases())
    results = [_checked(store, name) for name in wanted]
    if as_json:
        print_json(results)
    else:
        for result in results:
            say(f"{coloured(result['verdict'].ljust(8))} {result['model']}: {result['found']}")
    sys.exit(1 if any(result["verdict"] == "failed" for result in results) else 0)


@command.command("verify")
@click.argument("release", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--memory-bytes", type=click.IntRange(1 << 26), help="Give up beyond so much address space.")
@click.option("--cpu-seconds", type=click.IntRange(1), help="Give up after so long on the processor.")
@json_option
def verify_one(release: Path, memory_bytes: int | None, cpu_seconds: int | None, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Compare a plain release in a directory with its manifest, load it, and run its golden inputs.

    It runs native code over the files: for those of strangers, give limits.
    """
    limit_this_process(memory_bytes, cpu_seconds)
    found = verify_release(release)
    if as_json:
        print_json(found)
    else:
        for one in found.artefacts:
            proof = (
                f"skipped: {one.skipped}"
                if one.skipped
                else f"{so_many(one.golden, 'golden input')} right, {one.runtime}"
            )
            say(f"{coloured('ok'.ljust(8))} {one.file} ({one.target}): {proof}")
        for problem in found.problems:
            say(f"{coloured('failed'.ljust(8))} {problem.where}: {problem.message}; {problem.remedy}")
    sys.exit(1 if found.problems else 0)


def _checked(store: ReleaseStore, name: str) -> dict[str, str]:
    try:
        release = store.find(name)
        found = verify(release)
    except ModelError as error:
        return {"model": name, "verdict": "failed", "found": str(error)}
    return {"model": name, "verdict": "ok", "found": f"{release.label}: {found}"}


def _store(config_file: Path | None, directories: tuple[Path, ...]) -> ReleaseStore:
    file = config_file if config_file is not None else DEFAULT_CONFIG
    if config_file is None and not file.exists():
        return ReleaseStore(directories)
    reading = read(file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(file), reading.errors)
    return ReleaseStore([*directories, *reading.config.models.directories], sealed=sealed_directory(reading.config))
