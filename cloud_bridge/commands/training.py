"""`training`: what gateways have sent to learn from, what people say of it, and releases that are trained again.

Needs the extra `training`; it is loaded only when a command uses it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from cloud_bridge.commands import model as models
from cloud_bridge.commands.options import FAILED, Place, Share, Time, placed, put, say
from cloud_bridge.config import Config
from cloud_bridge.drift import book
from cloud_bridge.drift.baselines import directories_of, retrained_directory
from cloud_bridge.drift.slices import Device
from cloud_bridge.drift.watch import open_database
from cloud_bridge.errors import BridgeError, ConfigError
from cloud_bridge.identity.database import Database
from cloud_bridge.registry.fleet import models_run
from cloud_bridge.rollout.plan import Plan
from cloud_bridge.rollout.registered import open_releases, open_revoked
from cloud_bridge.rollout.releases import Release as Named
from cloud_bridge.rollout.service import RolloutDesk, plan_from
from cloud_bridge.rollout.waves import waves_of
from cloud_bridge.store.base import Reader
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.forgotten import forgotten_devices
from cloud_bridge.twins.reported import find_reported
from gateway.wire.manifest import ModelManifest
from gateway.wire.plain import so_many
from gateway.wire.times import rfc3339

if TYPE_CHECKING:
    from cloud_bridge.training.collect import Collection, Sample
    from cloud_bridge.training.parents import Parents
    from cloud_bridge.training.retrain import Retrained

_WAVES: Final = "1, 10%, rest"
_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one line for each.")


@dataclass(frozen=True, slots=True)
class _Desk:
    config: Config
    database: Database
    reader: Reader

    def labels(self) -> dict[tuple[str, str], str]:
        """Return what people have said."""
        with self.database.transaction() as tx:
            return book.labels(tx)

    def places(self) -> list[Path]:
        """Return the directories in which releases lie in clear, those trained here first."""
        return directories_of(self.config)


@contextmanager
def _opened(file: Path | None, store_url: str | None) -> Iterator[_Desk]:
    place = Place(file, store_url)
    config = place.config()
    database = open_database(config)
    try:
        with place.reader() as reader:
            yield _Desk(config, database, reader)
    finally:
        database.close()


class _Training(click.Group):
    """Turns errors of the training, and its absence, into messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise ConfigError(f"training needs {error.name}: pip install 'sluice[training]'") from error


@click.group(cls=_Training)
def training() -> None:
    """Learn from the field: samples that gateways have sent, labels, releases that are trained again."""


@training.command()
@placed
@click.argument("name")
@click.option("--from", "version", help="As this version of the release takes them; default: the newest published.")
@click.option("--since", type=Time(), help="Received since 2026-01-31T12:00:00Z, or 15m, 6h, 2d ago.")
@click.option("--unlabelled", is_flag=True, help="Only those that nobody has judged.")
@_as_json
def samples(
    file: Path | None,
    store_url: str | None,
    *,
    name: str,
    version: str | None,
    since: int | None,
    unlabelled: bool,
    as_json: bool,
) -> None:
    """Show which windows of a model are here, and what they are taken for."""
    with _opened(file, store_url) as desk:
        with _parents(desk, file, store_url) as parents:
            taken_as = parents.manifest(name, version)
        found = _collected(desk, taken_as, since)
    for one in found.samples:
        if unlabelled and one.by == "person":
            continue
        if as_json:
            put(_sample_plain(one))
        else:
            words = f"{one.verdict} (by {one.by})"
            say(f"{one.at} {one.recording.origin} {one.label} {one.score:.2f} {words} {one.event_id}")
    if not as_json:
        say(_counts(found))


@training.command()
@placed
@click.argument("label")
@click.argument("event_ids", nargs=-1)
@click.option("--gateway", help="Of this gateway.")
@click.option("--pipeline", help="All events of this pipeline; needs --gateway and --since.")
@click.option("--since", type=Time(), help="All events since then.")
@click.option("--until", type=Time(), help="All events before then.")
def label(
    file: Path | None,
    store_url: str | None,
    *,
    label: str,
    event_ids: tuple[str, ...],
    gateway: str | None,
    pipeline: str | None,
    since: int | None,
    until: int | None,
) -> None:
    """Say what events really were: `normal`, or any other word for an anomaly.

    Either events by their ids, or all of a pipeline in a stretch of time.
    """
    if bool(event_ids) == bool(pipeline):
        raise click.UsageError("give either ids of events, or --gateway, --pipeline and --since")
    if pipeline and (gateway is None or since is None):
        raise click.UsageError("--pipeline needs --gateway and --since")
    with _opened(file, store_url) as desk:
        if pipeline:
            chosen = list(_events_of(desk.reader, gateway or "", pipeline, since, until))
            if not chosen:
                raise ConfigError(
                    f"no event of pipeline {pipeline} of {gateway} came in that time; nothing was labelled"
                )
        else:
            chosen = [_event_of(desk.reader, one, gateway) for one in event_ids]
        with desk.database.transaction() as tx:
            for one_gateway, one_id in chosen:
                book.put_label(tx, one_gateway, one_id, label, time.time_ns())
    say(f"{so_many(len(chosen), 'event')}: {label}")


@training.command()
@placed
@click.argument("name")
@click.option("--from", "version", help="The version to begin with; default: the newest published.")
@click.option("--since", type=Time(), help="With samples received since then.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where the release is written.")
@click.option("--version", "new_version", help="Of the new release; default: the next patch version that is free.")
@click.option("--share", type=Share(0.01), default=1.0, help="Of the recipe's own data, for a quick look.")
@click.option("--no-publish", is_flag=True, help="Only write it, even if there is a registry.")
@click.option("--canary/--no-canary", default=None, help="Begin a rollout at once; default: as `drift.retrain` says.")
@click.option("--dry-run", is_flag=True, help="Only say what would be used.")
@_as_json
def retrain(
    file: Path | None,
    store_url: str | None,
    *,
    name: str,
    version: str | None,
    since: int | None,
    out: Path | None,
    new_version: str | None,
    share: float,
    no_publish: bool,
    canary: bool | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a release again with what the field has sent, and publish it as a candidate.

    It begins with the newest release of the registry, or of the directories in `drift.releases` where there is none.
    It is refused when int8 keeps less than 98 % of float, or when it is worse than its parent on the same data.
    """
    from cloud_bridge.training.collect import field_of  # noqa: PLC0415  # the extra `training`
    from cloud_bridge.training.errors import TrainingError  # noqa: PLC0415
    from cloud_bridge.training.release import write  # noqa: PLC0415
    from cloud_bridge.training.retrain import retrain as train_again  # noqa: PLC0415

    with _opened(file, store_url) as desk:
        with _parents(desk, file, store_url) as parents:
            parent = parents.release(name, version)
            new_version = parents.version(parent.manifest, new_version)
            if not no_publish:
                parents.require_publishable(parent.manifest, new_version)
        found = _collected(desk, parent.manifest, since)
        field = field_of(found.samples)
        if dry_run:
            facts = {"name": name, "parent": parent.manifest.version, "version": new_version}
            parts = {part: len(getattr(field, part)) for part in ("train", "validation", "held", "anomalous")}
            if as_json:
                put({**facts, "samples": found.counts(), "left_out": found.left_out, "field": parts})
            else:
                say(f"{name} {new_version} would be trained from {parent.manifest.version}\n{_counts(found)}")
            return
        device = Device(name, parent.manifest.version, "bridge", "training")
        try:
            done = train_again(parent, field, version=new_version, share=share, released_at=rfc3339(time.time_ns()))
        except TrainingError as error:
            _note(desk, device, "failed", str(error))
            say(f"error: {error}", err=True)
            click.get_current_context().exit(FAILED)
        place = write(done.made, out or retrained_directory(desk.config))
        told = _published(desk, place, file, store_url, publish=not no_publish, canary=canary)
        _note(desk, device, "retrained", f"{name} {new_version}, {told['state']}", settles=True)
    _tell(done, place, told, as_json=as_json)


def _published(
    desk: _Desk,
    place: Path,
    file: Path | None,
    store_url: str | None,
    *,
    publish: bool,
    canary: bool | None,
) -> dict[str, Any]:
    """Publish a release as a candidate, and begin its rollouts if that is wanted."""
    if not publish or desk.config.registry is None:
        return {"state": "written", "rollouts": []}
    with models.opened(file, store_url) as registry:
        entry = registry.publish(place, candidate=True, who="retraining")
    wants = desk.config.drift.retrain == "canary" if canary is None else canary
    if not wants:
        return {"state": entry.state, "token": entry.token, "rollouts": []}
    return {"state": entry.state, "token": entry.token, "rollouts": _begin_rollouts(desk, entry.name, entry.version)}


def _begin_rollouts(desk: _Desk, name: str, version: str) -> list[str]:
    """Begin a rollout for each pipeline that runs the model; one that cannot begin is told, and not waited for."""
    states = desk.reader.pipelines()
    database = open_fleet(desk.config.store)
    try:
        releases, revoked = open_releases(desk.config), open_revoked(desk.config)
        gone = frozenset(revoked())
        with database.transaction(durable=False) as tx:
            runs = models_run(states, find_reported(tx).values(), gone | forgotten_devices(tx))
        names = sorted({pipeline for (_, pipeline), model in runs.items() if model is not None and model.name == name})
        rollouts = RolloutDesk(database, desk.reader, time.time_ns, releases, revoked)
        begun = []
        for pipeline in names:
            try:
                plan = _plan(desk.config, pipeline, Named(name, version))
                begun.append(rollouts.create(plan, who="retraining", allow_candidate=True).id)
            except BridgeError as error:
                say(f"no rollout for pipeline {pipeline}: {error}", err=True)
    finally:
        database.close()
    return begun


def _plan(config: Config, pipeline: str, release: Named) -> Plan:
    return plan_from(config.rollout, pipeline=pipeline, release=release, waves=waves_of(_WAVES))


@contextmanager
def _parents(desk: _Desk, file: Path | None, store_url: str | None) -> "Iterator[Parents]":
    """Open what can be trained again; the registry is closed before the training, which takes long."""
    from cloud_bridge.training.parents import Parents  # noqa: PLC0415  # the extra `training`

    if desk.config.registry is None:
        yield Parents(desk.places())
        return
    with models.opened(file, store_url) as registry:
        yield Parents(desk.places(), registry)


def _collected(desk: _Desk, parent: ModelManifest, since: int | None) -> "Collection":
    from cloud_bridge.training.collect import collect  # noqa: PLC0415  # the extra `training`

    return collect(desk.reader, parent, desk.labels(), since_ns=since)


def _events_of(
    reader: Reader, gateway: str, pipeline: str, since: int | None, until: int | None
) -> Iterator[tuple[str, str]]:
    before: int | None = None
    while page := reader.events(
        limit=500, gateway=gateway, pipeline=pipeline, since_ns=since, until_ns=until, before_id=before
    ):
        for one in page:
            yield one.event.gateway, one.event.event_id
        before = page[-1].id


def _event_of(reader: Reader, event_id: str, gateway: str | None) -> tuple[str, str]:
    stored = reader.event(event_id, gateway)
    if stored is None:
        raise ConfigError(
            f"there is no event {event_id}; `cloud-bridge events` lists them, --gateway tells twins apart"
        )
    return stored.event.gateway, event_id


def _note(desk: _Desk, device: Device, kind: str, detail: str, *, settles: bool = False) -> None:
    now_ns = time.time_ns()
    with desk.database.transaction() as tx:
        book.note(tx, device, kind, detail, now_ns)
        for one in book.proposals(tx) if settles else []:
            if one.state in ("open", "running") and (one.model, one.version) == (device.model, device.version):
                book.settle(tx, one.id, "done", detail, now_ns)


def _sample_plain(one: "Sample") -> dict[str, Any]:
    return {
        "gateway": one.gateway,
        "event_id": one.event_id,
        "evidence_id": one.evidence_id,
        "at": one.at,
        "origin": one.recording.origin,
        "label": one.label,
        "score": one.score,
        "verdict": one.verdict,
        "by": one.by,
    }


def _counts(found: "Collection") -> str:
    lines = [f"{so_many(count, 'window')}: {what}" for what, count in found.counts().items()] or ["no windows"]
    lines += [f"{count} left out: {why}" for why, count in sorted(found.left_out.items())]
    return "\n".join(lines)


def _tell(done: "Retrained", place: Path, told: dict[str, Any], *, as_json: bool) -> None:
    manifest = done.made.manifest
    if as_json:
        figures = {metric: [now, done.parent_figures.get(metric)] for metric, now in done.figures.items()}
        lineage = msgspec.to_builtins(manifest.lineage)
        put(
            {"name": manifest.name, "version": manifest.version, "directory": str(place), "lineage": lineage}
            | {"sha256": done.made.artefact.sha256, "figures": figures, **told}
        )
        return
    say(f"{manifest.name} {manifest.version}: {place} ({told['state']})")
    for metric, now in done.figures.items():
        say(f"  {now:10.4f} (was {done.parent_figures.get(metric, float('nan')):.4f})  {metric}")
    if told["state"] == "candidate" and not told["rollouts"]:
        say(f"it waits: cloud-bridge model approve {manifest.name}@{manifest.version}")
    for rollout in told["rollouts"]:
        say(f"rollout {rollout} has begun")
