"""`fleet`: the devices with their labels, features and twins."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from cloud_bridge.commands.options import Place, placed, put, say, say_line
from cloud_bridge.commands.rollout_words import device_line, device_plain
from cloud_bridge.control import Question
from cloud_bridge.errors import StoreError
from cloud_bridge.rollout.errors import RolloutError
from cloud_bridge.rollout.fleet import Fleet
from cloud_bridge.rollout.waves import LABEL_KEY, labels_of, matches
from cloud_bridge.store.opening import open_reader
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.desired import set_features
from cloud_bridge.twins.forgotten import forget_device
from cloud_bridge.twins.labels import all_labels, set_labels
from gateway.wire.plain import so_many
from gateway.wire.topics import GATEWAY_ID, NAME

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one line for each.")
_LATELY_NS: Final = 86_400 * 10**9
_SWITCH: Final[dict[str, bool | None]] = {"on": True, "off": False, "default": None}


@click.group()
def fleet() -> None:
    """Devices: labels to choose them by, features, and what they are to run."""


@fleet.command("list")
@placed
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="With this label only; may be given again.")
@_as_json
def list_(file: Path | None, store_url: str | None, *, labels: tuple[str, ...], as_json: bool) -> None:
    """Show devices with their labels, and what they run."""
    wanted = labels_of(labels)
    config = Place(file, store_url).config()
    reader, database = open_reader(config.store), open_fleet(config.store)
    try:
        found = Fleet.read(reader, database)
    finally:
        database.close()
        reader.close()
    for name in found.names():
        if matches(wanted, found.labels_of(name)):
            plain = device_plain(found, name)
            if as_json:
                put(plain)
            else:
                say_line(device_line(plain))


@fleet.command()
@placed
@click.argument("gateway")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE…")
def label(file: Path | None, store_url: str | None, *, gateway: str, labels: tuple[str, ...]) -> None:
    """Label a device: site=berlin ring=canary; `site-` takes a label away."""
    _check(gateway)
    gone = [text[:-1] for text in labels if text.endswith("-") and LABEL_KEY.fullmatch(text[:-1])]
    changes: dict[str, str | None] = dict.fromkeys(gone)
    changes.update(labels_of([text for text in labels if text[:-1] not in gone]))
    place = Place(file, store_url)
    database = open_fleet(place.config().store)
    try:
        with database.transaction() as tx:
            set_labels(tx, gateway, changes)
            now = all_labels(tx).get(gateway, {})
        with suppress(StoreError), place.reader() as reader:
            found = Fleet.read(reader, database)
            if changes and gateway not in {*found.gateways, *found.reported}:
                say(f"no gateway {gateway} was heard of yet; the labels wait for it", err=True)
    finally:
        database.close()
    say(f"{gateway} [{' '.join(f'{key}={value}' for key, value in now.items())}]")


@fleet.command()
@placed
@click.argument("switches", nargs=-1, required=True, metavar="NAME=on|off|default…")
@click.option("--gateway", help="Of this device.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Of the devices with this label.")
def feature(
    file: Path | None, store_url: str | None, *, switches: tuple[str, ...], gateway: str | None, labels: tuple[str, ...]
) -> None:
    """Switch optional capabilities of devices on or off in their desired twins."""
    if (gateway is None) == (not labels):
        raise click.UsageError("give either --gateway or --label")
    wanted = _switches(switches)
    database = open_fleet(Place(file, store_url).config().store)
    try:
        with database.transaction() as tx:
            if gateway is not None:
                _check(gateway)
                names = [gateway]
            else:
                names = [name for name, found in all_labels(tx).items() if matches(labels_of(labels), found)]
            token = set_features(tx, names, wanted, time.time_ns()) if names else 0
    finally:
        database.close()
    if not names:
        raise RolloutError(f"no device is labelled {' '.join(labels)}; see `cloud-bridge fleet list`")
    say(f"told to {so_many(len(names), 'device')}, with token {token}")


@fleet.command()
@placed
@click.argument("gateway")
@click.option("--force", is_flag=True, help="Also if it is connected, or was heard of within the last day.")
@_as_json
def forget(file: Path | None, store_url: str | None, *, gateway: str, force: bool, as_json: bool) -> None:
    """Leave a device that is gone for good out of the fleet: of rollouts, lists and labels.

    Its records stay. Should it speak again, it is a device of the fleet again, without labels. This takes no
    certificate back: `cloud-bridge identity revoke` does.
    """
    _check(gateway)
    place = Place(file, store_url)
    config, now_ns = place.config(), time.time_ns()
    database = open_fleet(config.store)
    try:
        with place.reader() as reader:
            found = Fleet.read(reader, database)
        if gateway not in found.names():
            raise RolloutError(f"no gateway {gateway} was heard of; see `cloud-bridge fleet list`")
        heard = found.heard(gateway, "")
        if not force and heard.online == "online":
            raise RolloutError(f"{gateway} is connected; to forget it all the same, give --force")
        if not force and now_ns - heard.seen_ns < _LATELY_NS:
            ago = (now_ns - heard.seen_ns) / 3600e9
            raise RolloutError(f"{gateway} was heard of {ago:.1f} h ago; if it is gone for good, give --force")
        with place.writer() as ask:
            ask(Question(ask="forget", gateway=gateway))
        with database.transaction() as tx:
            forget_device(tx, gateway, now_ns)
    finally:
        database.close()
    if as_json:
        put({"gateway": gateway, "forgotten": True})
    else:
        say(f"{gateway} is forgotten; its records stay")


def _switches(texts: tuple[str, ...]) -> Mapping[str, bool | None]:
    found: dict[str, bool | None] = {}
    for text in texts:
        name, _, word = text.partition("=")
        if NAME.fullmatch(name) is None or word not in _SWITCH:
            raise RolloutError(f"{text!r} is no switch; write NAME=on, NAME=off or NAME=default")
        found[name] = _SWITCH[word]
    return found


def _check(gateway: str) -> None:
    if GATEWAY_ID.fullmatch(gateway) is None:
        raise RolloutError(f"{gateway!r} is no id of a gateway: a-z, 0-9 and -, up to 63 of them")
