"""`os`: publish images of the appliance's system, look at them, take them back."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cloud_bridge import logs
from cloud_bridge.commands.options import Place, placed, put, say
from cloud_bridge.config import Log
from cloud_bridge.osbundles.ledger import BundleEntry
from cloud_bridge.osbundles.publishing import BundleShelf
from cloud_bridge.registry.component import open_registry
from cloud_bridge.registry.errors import NotFoundError
from gateway.wire.times import rfc3339

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one line for each.")
_bundle = click.argument("bundle", metavar="COMPATIBLE@VERSION")


@contextmanager
def opened(file: Path | None, store_url: str | None) -> Iterator[BundleShelf]:
    """Open the bundles of a configuration's registry."""
    registry, identities = open_registry(Place(file, store_url).config(), time.time_ns)
    try:
        yield BundleShelf(registry.repository, registry.ledger, identities.database, time.time_ns)
    finally:
        identities.database.close()


@click.group("os")
def os_() -> None:
    """Images of the appliance's system: publish, list, take back."""
    logs.configure(Log(level="warning"))  # what is done, the commands say themselves


@os_.command()
@placed
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--compatible", help="Refuse the bundle if it is for other devices.")
@click.option("--version", help="Refuse the bundle if it has another version.")
@click.option("--floor", help="Refuse the bundle if it names another floor.")
@click.option(
    "--keyring",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Refuse the bundle unless it is signed by this authority (PEM), as devices will; needs openssl.",
)
@_as_json
def publish(
    file: Path | None,
    store_url: str | None,
    *,
    bundle: Path,
    keyring: Path | None,
    as_json: bool,
    **expected: str | None,
) -> None:
    """Publish BUNDLE (*.raucb). What devices are told about it is what its own manifest says.

    The same bundle again does nothing, or goes on where it was cut short.
    """
    wanted = {what: value for what, value in expected.items() if value is not None}
    with opened(file, store_url) as shelf:
        made = shelf.publish(bundle, expected=wanted, keyring=keyring)
    if as_json:
        put({"is_new": made.is_new, "waiting": made.waiting, **plain(made.entry)})
        return
    entry = made.entry
    if not made.is_new:
        say(f"{entry.label} is published already, token {entry.token}")
        return
    floor = entry.custom.get("floor") or "none"
    say(f"{entry.label}: {entry.size_bytes:,} bytes, floor {floor}, token {entry.token}, sha256 {entry.sha256}")
    if keyring is None:
        say("its signature was not looked at here (--keyring); devices will")
    if made.waiting:
        say(f"devices cannot install it yet: {made.waiting}")


@os_.command("list")
@placed
@click.option("--all", "everything", is_flag=True, help="Those that are not published, or were taken back, too.")
@_as_json
def list_(file: Path | None, store_url: str | None, *, everything: bool, as_json: bool) -> None:
    """List the bundles, by device and version."""
    with opened(file, store_url) as shelf:
        shelf.settle()
        entries = [one for one in shelf.ledger.bundles() if everything or one.state == "published"]
    for entry in entries:
        if as_json:
            put(plain(entry))
        else:
            floor = entry.custom.get("floor") or "-"
            say(f"{entry.compatible:28} {entry.version:14} {entry.size_bytes:>14,}  floor {floor:12} {entry.state}")


@os_.command()
@placed
@_bundle
@_as_json
def show(file: Path | None, store_url: str | None, *, bundle: str, as_json: bool) -> None:
    """Show a bundle."""
    with opened(file, store_url) as shelf:
        shelf.settle()
        found = plain(shelf.ledger.entry(*_named(bundle)))
    if as_json:
        put(found)
        return
    for key, value in found.items():
        say(f"{key:16} {value}")


@os_.command("yank")
@placed
@_bundle
@click.option("--why", required=True, help="Kept, and shown to whoever asks.")
@_as_json
def yank(file: Path | None, store_url: str | None, *, bundle: str, why: str, as_json: bool) -> None:
    """Take a bundle back: no device can install it any more. Where it runs, it goes on."""
    with opened(file, store_url) as shelf:
        entry = shelf.yank(*_named(bundle), why)
    if as_json:
        put(plain(entry))
    else:
        say(f"{entry.label} is taken back; devices that run it go on until a rollout replaces it")


def plain(entry: BundleEntry) -> dict[str, Any]:
    """Put a bundle for JSON."""
    custom = entry.custom
    return {
        "compatible": entry.compatible,
        "version": entry.version,
        "state": entry.state,
        "token": entry.token,
        "size_bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "floor": custom.get("floor", ""),
        "counter": custom.get("counter"),
        "adaptive": custom.get("adaptive", False),
        "path": entry.path,
        "created_at": rfc3339(entry.created_ns),
        "published_at": rfc3339(entry.published_ns) if entry.published_ns else None,
        "yanked_at": rfc3339(entry.yanked_ns) if entry.yanked_ns else None,
        "yanked_why": entry.yanked_why,
    }


def _named(text: str) -> tuple[str, str]:
    compatible, _, version = text.partition("@")
    if not version:
        raise NotFoundError(f"{text!r}: write COMPATIBLE@VERSION, as in sluice-uefi-amd64@1.4.0")
    return compatible, version
