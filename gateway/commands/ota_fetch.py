"""The part of `gateway ota` that looks at the repository: `import`, `refresh`, `offered`."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec

from gateway import logs
from gateway.commands.options import config_option, json_option
from gateway.commands.output import print_json, print_table, say, size
from gateway.config import Config, Ota
from gateway.configload import InvalidConfigError, read
from gateway.control import ask, socket_path
from gateway.errors import ConfigError, ControlClosedError, ControlError
from gateway.identity.clock import TrustedClock
from gateway.identity.record import IdentityFiles
from gateway.ota.errors import NotThereError, OtaError, TrustError
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.fetch_offer import Listed
from gateway.ota.floor import floor_for
from gateway.ota.ways import DirectoryWay, Way
from gateway.ota.ways_open import open_way
from gateway.owner import become_owner, require_reach
from gateway.vault.errors import VaultError
from gateway.vault.vault import has_content_key
from gateway.wire.plain import so_many

REFRESH_REQUEST: Final = "ota-refresh"
"""What a running gateway is told over its control socket."""


class Brought(msgspec.Struct, frozen=True, kw_only=True):
    """What an import found of one release. `reason` is empty when everything that the device needs is here."""

    name: str
    version: str
    files: int = 0  # kept from this import
    already: int = 0  # kept before
    missing: tuple[str, ...] = ()  # not in the directory, such as patches, which need not be
    waits_for_key: bool = False  # it cannot be installed before its content key is here
    reason: str = ""


@click.command("import")
@click.argument("directory", metavar="PATH", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("releases", metavar="[NAME[@VERSION]]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every release, not only the newest of each model.")
@config_option
@json_option
def import_command(
    directory: Path,
    releases: tuple[str, ...],
    everything: bool,  # noqa: FBT001 - click passes by name
    config_file: Path,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Bring releases from a directory, such as a USB stick with a copy of the repository.

    PATH has `metadata` and `targets` in it. It needs no trust: what it holds counts only as far as the repository's
    keys have signed it, for this hardware, and not older than what this gateway has seen. The files are kept until the
    gateway installs the release; which one it is to run, the bridge or a person says.

    No content key comes this way. Where no bridge grants it, `cloud-bridge model extract` writes the release in clear
    and `gateway vault import` seals it here.
    """
    config, settings = _config(config_file)
    repository = _repository(config, settings, DirectoryWay(directory))
    require_reach(directory)
    repository.refresh()
    chosen = _chosen(repository.listed(), releases, everything=everything)
    brought = [_bring(config, repository, each) for each in chosen]
    if as_json:
        print_json(brought)
    for each in brought if not as_json else ():
        state = each.reason or f"{so_many(each.files, 'file')} brought, {each.already} were here"
        missing = f"; not on it: {', '.join(each.missing)}" if each.missing else ""
        say(f"{each.name} {each.version}: {state}{missing}")
    waiting = [f"{each.name}@{each.version}" for each in brought if each.waits_for_key]
    if waiting and not as_json:
        verb = "waits for its key" if len(waiting) == 1 else "wait for their keys"
        say(f"{len(waiting)} of {so_many(len(brought), 'release')} {verb} ({', '.join(waiting)}): {key_remedy(config)}")
    if not brought:
        raise OtaError(f"{directory}: no release of that name is in the signed list")
    if all(each.reason for each in brought):
        raise OtaError("nothing was brought that this gateway can install")


@click.command("refresh")
@click.option(
    "--from",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="From a directory, instead of the way that is configured.",
)
@config_option
def refresh_command(directory: Path | None, config_file: Path) -> None:
    """Ask now what the repository offers; a running gateway does it, if there is one."""
    config, settings = _config(config_file)
    if directory is None and _asked(config):
        say("the running gateway looks now; see `gateway ota status`")
        return
    way: Way
    if directory is not None:
        way = DirectoryWay(directory)
    elif settings.url is not None and config.identity is None:
        way = open_way(settings, monotonic_ns=time.monotonic_ns)
    else:
        raise ControlError(
            "no gateway is running, and only a running one has a certificate or a connection to the broker; start it, "
            "or refresh --from a directory"
        )
    try:
        repository = _repository(config, settings, way)
        if directory is not None:
            require_reach(directory)
        repository.refresh()
    finally:
        way.close()
    say("refreshed")


@click.command("offered")
@config_option
@json_option
def offered_command(config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """List the releases of the metadata that are here, verified anew; asks nobody."""
    config, settings = _config(config_file)
    repository = repository_here(config, settings)
    listed = repository.listed()
    if as_json:
        print_json(listed)
        return
    rows = [
        (each.name, each.version, str(each.token), ", ".join(each.hardware) or "any", size(each.size_bytes))
        for each in listed
    ]
    print_table(("name", "version", "token", "hardware", "size"), rows)
    stale = repository.stale_since_ns
    if stale is not None:
        since = datetime.fromtimestamp(stale / 1e9, UTC).isoformat(timespec="seconds")
        say(f"stale since {since}: the repository was not reached, or offers nothing newer")


# ---- inside -------------------------------------------------------------------------------------------------


def _config(config_file: Path) -> tuple[Config, Ota]:
    reading = read(config_file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    if reading.config.ota is None:
        raise ConfigError(f"{config_file} has no `ota`: name the repository's root, e.g. ota: {{root_file: root.json}}")
    logs.configure_for_command(reading.config.log)
    return reading.config, reading.config.ota


def _repository(config: Config, settings: Ota, way: Way) -> Repository:
    """Return the repository; from here on as the gateway's user, who must be able to read what is kept of it."""
    state = config.gateway.state_directory
    # As root: it looks at who reaches the TPM.
    floor = floor_for(config.vault, state, has_identity=config.identity is not None)
    become_owner(state)
    clock = TrustedClock(IdentityFiles(state).look().floor_ns if config.identity is not None else 0)
    return Repository(
        settings,
        state,
        way,
        meter=Unmetered(),  # a person who types this at the device decides about its link
        now_ns=clock.now_ns,
        monotonic_ns=time.monotonic_ns,
        floor=floor,
    )


def repository_here(config: Config, settings: Ota) -> Repository:
    """Return what is known of the repository already; asks nobody."""
    return _repository(config, settings, DirectoryWay(config.gateway.state_directory / "ota"))


def _asked(config: Config) -> bool:
    try:
        ask(socket_path(config.gateway), REFRESH_REQUEST)
    except ControlClosedError:
        raise
    except ControlError:
        return False
    return True


def _chosen(listed: list[Listed], wanted: tuple[str, ...], *, everything: bool) -> list[Listed]:
    """Return the releases that were asked for: by default the newest of each model, which is the first in the list."""
    if wanted:
        listed = [each for each in listed if {each.name, f"{each.name}@{each.version}"} & set(wanted)]
    seen: set[str] = set()
    chosen = []
    for each in listed:
        if everything or each.name not in seen or f"{each.name}@{each.version}" in wanted:
            chosen.append(each)
        seen.add(each.name)
    return chosen


def key_remedy(config: Config) -> str:
    """Say what brings a content key to this device."""
    extracted = (
        "`cloud-bridge model extract NAME@VERSION DIR` beside the bridge writes the release in clear, and "
        "`gateway vault import DIR/NAME/VERSION` here seals it"
    )
    if config.identity is None:
        return f"this device has no `identity`, so no bridge grants it one; {extracted}"
    return f"the next attestation by the bridge brings it; where the bridge stays out of reach, {extracted}"


def waits_for_key(config: Config, digest: str) -> bool:
    """Tell whether a release cannot be opened here for want of its content key; False where that is not known.

    Args:
        config: of the gateway, as whose user this runs.
        digest: SHA-256 of its manifest.
    """
    try:
        return not has_content_key(config.gateway.state_directory, digest)
    except VaultError:  # the gateway itself says what is wrong with its vault
        return False


def _bring(config: Config, repository: Repository, each: Listed) -> Brought:
    kept = already = 0
    missing: list[str] = []
    try:
        for file in repository.offer(each.name, each.version).files:
            try:
                if repository.keep(file):
                    kept += 1
                else:
                    already += 1
            except NotThereError:
                missing.append(file.name)
                if file.custom.get("kind") != "patch":
                    raise
    except (TrustError, NotThereError) as error:
        return Brought(name=each.name, version=each.version, files=kept, already=already, reason=str(error))
    return Brought(
        name=each.name,
        version=each.version,
        files=kept,
        already=already,
        missing=tuple(missing),
        waits_for_key=waits_for_key(config, repository.digest(each.name, each.version)),
    )
