"""`model`: publish releases of models, look at them, approve them, take them back."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from cloud_bridge import logs
from cloud_bridge.commands.options import FAILED, Directory, Place, placed, put, say
from cloud_bridge.config import Log
from cloud_bridge.errors import BridgeError
from cloud_bridge.registry.comparison import differences
from cloud_bridge.registry.component import open_registry
from cloud_bridge.registry.errors import NotFoundError, RefusedReleaseError
from cloud_bridge.registry.fleet import running_in
from cloud_bridge.registry.publishing import Base, Publication, Wishes
from cloud_bridge.registry.registry import Registry
from cloud_bridge.registry.release import ReleaseEntry
from cloud_bridge.rollout.registered import open_revoked
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.forgotten import forgotten_devices
from cloud_bridge.twins.reported import Reported, find_reported
from gateway.wire.plain import so_many
from gateway.wire.times import rfc3339

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one line for each.")
_release = click.argument("release", metavar="NAME[@VERSION]")


@contextmanager
def opened(file: Path | None, store_url: str | None) -> Iterator[Registry]:
    """Open the registry of a configuration."""
    place = Place(file, store_url)

    def running() -> Mapping[tuple[str, str], int]:
        try:
            with place.reader() as reader:
                states = reader.pipelines()
            return running_in(states, *_reports(place))
        except BridgeError as error:
            say(f"which releases the fleet runs is not known, so patches are from the newest: {error}", err=True)
            return {}

    registry, identities = open_registry(place.config(), time.time_ns, running)
    try:
        yield registry
    finally:
        identities.database.close()


def _reports(place: Place) -> tuple[Collection[Reported], Collection[str]]:
    """Return what devices said last, and who of them is gone for good."""
    revoked = open_revoked(place.config())()
    database = open_fleet(place.config().store)
    try:
        with database.transaction(durable=False) as tx:
            return find_reported(tx).values(), forgotten_devices(tx) | frozenset(revoked)
    finally:
        database.close()


def found(registry: Registry, release: str) -> ReleaseEntry:
    """Return a release by NAME@VERSION, or by NAME the newest that devices can install."""
    name, _, version = release.partition("@")
    if not name:
        raise click.UsageError(f"{release!r} names no release; write NAME or NAME@VERSION")
    entry = registry.entry(name, version) if version else registry.newest(name)
    if entry is None:
        raise NotFoundError(f"no release of {name} can be installed; `cloud-bridge model list` shows what there is")
    return entry


def entry_plain(entry: ReleaseEntry) -> dict[str, Any]:
    """Put a release for JSON."""
    return {
        "name": entry.name,
        "version": entry.version,
        "token": entry.token,
        "state": "yanked" if entry.yanked_ns else entry.state if entry.published_ns else "unpublished",
        "digest": entry.digest,
        "published_at": rfc3339(entry.published_ns) if entry.published_ns else None,
        "yanked_at": rfc3339(entry.yanked_ns) if entry.yanked_ns else None,
        "yanked_why": entry.yanked_why,
        "approved_at": rfc3339(entry.approved_ns) if entry.approved_ns else None,
        "approved_by": entry.approved_by,
        "targets": list(entry.targets),
        "hardware": list(entry.hardware),
        "accepted": list(entry.accepted),
        "summary": entry.manifest.summary,
    }


def files_plain(entry: ReleaseEntry) -> list[dict[str, Any]]:
    """Put the files of a release for JSON."""
    return [
        {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256, **file.custom} for file in entry.files
    ]


@click.group()
def model() -> None:
    """Releases of models: publish, compare, approve, take back."""
    logs.configure(Log(level="warning"))  # what is done, the commands say themselves


@model.command()
@placed
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--candidate", is_flag=True, help="It waits for `model approve`, or for a rollout that names it.")
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(["no-golden", "no-quality", "quality", "tolerance"]),
    help="Overrule a problem that may be overruled; is noted.",
)
@click.option("--hardware", multiple=True, metavar="NAME", help="Only for devices of this hardware; default: any.")
@click.option("--gateway", "gateways", multiple=True, help="Only this device gets the content key; default: any.")
@_as_json
def publish(
    file: Path | None,
    store_url: str | None,
    *,
    directory: Path,
    candidate: bool,
    accept: tuple[str, ...],
    hardware: tuple[str, ...],
    gateways: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check the release in DIRECTORY, seal it, make patches, sign it.

    The same directory again does nothing, or goes on where it was cut short.
    """
    wishes = Wishes(candidate, frozenset(accept), hardware, gateways)
    with opened(file, store_url) as registry:
        try:
            publication = registry.publication(directory, wishes)
        except RefusedReleaseError as error:
            if not as_json:
                raise
            put({"published": False, "problems": [msgspec.to_builtins(one) for one in error.problems]})
            click.get_current_context().exit(FAILED)
    if as_json:
        put({"published": not publication.waiting, **_publication_plain(publication)})
    else:
        _tell_publication(publication)


def _publication_plain(publication: Publication) -> dict[str, Any]:
    return {
        "is_new": publication.is_new,
        "waiting": publication.waiting,
        "problems": [msgspec.to_builtins(one) for one in publication.accepted],
        "examined": [msgspec.to_builtins(one) for one in publication.examined],
        "bases": [msgspec.to_builtins(one) for one in publication.bases],
        **entry_plain(publication.entry),
        "files": files_plain(publication.entry),
    }


def _tell_publication(publication: Publication) -> None:
    entry = publication.entry
    if not publication.is_new:
        where = f"for {', '.join(entry.hardware)}" if entry.hardware else "for any hardware"
        say(f"{entry.label} is published already, token {entry.token}, {entry.state}, {where}; it stays as it is")
        return
    say(f"{entry.label}: token {entry.token}, {entry.state}, digest {entry.digest}")
    for one in publication.examined:
        proof = (
            f"not run: {one.skipped}"
            if one.skipped
            else f"{so_many(one.golden, 'golden input')} right on {one.runtime}"
        )
        say(f"  {one.target:10} {proof}")
    for problem in publication.accepted:
        say(f"  accepted: {problem.where}: {problem.message}")
    _tell_files(entry)
    if publication.bases:
        say(f"  {_bases_words(entry, publication.bases)}")
    if publication.waiting:
        say(f"devices cannot install it yet: {publication.waiting}")


def _bases_words(entry: ReleaseEntry, bases: Sequence[Base]) -> str:
    """Say from what patches could lead, so that who publishes sees when nothing was known of the fleet."""
    if not any(one.pipelines for one in bases):
        return (
            f"no device has said that it runs a release of {entry.name} that can be installed, so there is a patch at"
            f" most from the newest, {bases[0].version}"
        )
    runs = ", ".join(f"{one.version} ({so_many(one.pipelines, 'pipeline')})" for one in bases)
    return f"patches are from what the fleet says that it runs: {runs}"


def _tell_files(entry: ReleaseEntry) -> None:
    for one in entry.files:
        if one.custom["kind"] == "artefact":
            plain = int(one.custom["size_bytes"])
            packed = one.custom["packed"] or "as it is"
            say(f"  {one.custom['target']:10} {one.size_bytes:>12,} bytes travel ({packed}), {plain:,} installed")
        elif one.custom["kind"] == "patch":
            base = f"from {one.custom['base_version']} by {one.custom['method']}"
            say(f"  {one.custom['target']:10} {one.size_bytes:>12,} bytes travel {base}")


@model.command("list")
@placed
@click.option("--all", "everything", is_flag=True, help="Those that wait for a signature or were cut short, too.")
@_as_json
def list_(file: Path | None, store_url: str | None, *, everything: bool, as_json: bool) -> None:
    """List the releases, by name and version."""
    with opened(file, store_url) as registry:
        entries = registry.releases() + (registry.unsigned() if everything else [])
    for entry in entries:
        plain = entry_plain(entry)
        if as_json:
            put(plain)
        else:
            at = plain["published_at"] or "-"
            targets = ",".join(entry.targets)
            say(f"{entry.name:24} {entry.version:12} {entry.token:>5}  {plain['state']:11} {at}  {targets}")


@model.command()
@placed
@_release
@_as_json
def show(file: Path | None, store_url: str | None, *, release: str, as_json: bool) -> None:
    """Show a release: the newest, if no version is given."""
    with opened(file, store_url) as registry:
        entry = found(registry, release)
    plain = entry_plain(entry)
    if as_json:
        put({**plain, "files": files_plain(entry), "manifest": msgspec.to_builtins(entry.manifest)})
        return
    for key, value in plain.items():
        text = ", ".join(value) if isinstance(value, list) else value
        say(f"{key:14} {text if text not in (None, '') else '-'}")
    for figure in entry.manifest.quality:
        say(f"  {figure.metric}: {figure.shipped_value:g} (float {figure.float_value:g})")
    _tell_files(entry)


@model.command()
@placed
@click.argument("old", metavar="NAME@OLD")
@click.argument("new", metavar="NAME[@NEW]")
@_as_json
def diff(file: Path | None, store_url: str | None, *, old: str, new: str, as_json: bool) -> None:
    """Compare two releases: manifest, quality, and how much a device has to fetch."""
    with opened(file, store_url) as registry:
        plain = differences(found(registry, old), found(registry, new))
    if as_json:
        put(plain)
        return
    for name, (before, after) in plain["manifest"].items():
        say(f"{name}:\n  - {before}\n  + {after}")
    for metric, (before, after) in plain["quality"].items():
        say(f"{metric}: {before if before is not None else '-'} -> {after if after is not None else '-'}")
    for target, travel in plain["travel"].items():
        patch = "no patch" if travel["patch"] is None else f"{travel['patch']:,} bytes as a patch"
        say(f"{target}: {travel['full']:,} bytes as a whole, {patch}")


@model.command()
@placed
@_release
@click.option("--who", default="operator", show_default=True, help="Is noted.")
@_as_json
def approve(file: Path | None, store_url: str | None, *, release: str, who: str, as_json: bool) -> None:
    """Approve a candidate."""
    with opened(file, store_url) as registry:
        entry = found(registry, release)
        was = entry.state
        entry = registry.approve(entry.name, entry.version, who=who)
    put(entry_plain(entry)) if as_json else say(
        f"{entry.label} is approved{'' if was == 'candidate' else ' already; nothing was changed'}"
    )


@model.command()
@placed
@click.argument("release", metavar="NAME@VERSION")
@click.option("--why", required=True, help="Is noted and shown.")
@click.option("--revoke-key", is_flag=True, help="Prolong no lease of its content key any more.")
@_as_json
def yank(file: Path | None, store_url: str | None, *, release: str, why: str, revoke_key: bool, as_json: bool) -> None:
    """Take a release back: no device can install it any more. Where it runs, it goes on until a rollout replaces it."""
    name, _, version = release.partition("@")
    if not version:
        raise click.UsageError("name the version: NAME@VERSION")
    if not why.strip():
        raise click.UsageError("--why needs a reason, which is noted and shown")
    with opened(file, store_url) as registry:
        was = registry.entry(name, version)
        entry = registry.yank(name, version, why)
        if revoke_key:
            registry.revoke_key(entry)
    if as_json:
        put(entry_plain(entry))
    elif was.yanked_ns is not None:
        say(f"{entry.label} was taken back already, on {rfc3339(was.yanked_ns)}: {was.yanked_why or 'no reason given'}")
    else:
        say(f"{entry.label} is taken back")


@model.command()
@placed
@click.argument("release", metavar="NAME[@VERSION]")
@click.argument("out", metavar="DIR", type=Directory())
@click.option("--who", default="operator", show_default=True, help="Is noted.")
@_as_json
def extract(file: Path | None, store_url: str | None, *, release: str, out: Path, who: str, as_json: bool) -> None:
    """Write a release IN CLEAR into DIR/NAME/VERSION, for `gateway vault import` on a device without a bridge.

    Its manifest is the signed one, so a device with the signed list takes it for that release. Whoever reads DIR has
    the weights: remove it once it is imported. Who has extracted what is noted.
    """
    with opened(file, store_url) as registry:
        place = registry.extract(found(registry, release), out, who=who)
    if as_json:
        put({"directory": str(place)})
        return
    say(f"{place} holds the release in clear: `gateway vault import` it on the device, and remove it")
