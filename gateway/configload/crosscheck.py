"""Checks of one part of the configuration against another, and against the disk."""

import zoneinfo
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.config import (
    Broker,
    CameraSource,
    Config,
    HealthSource,
    IioSource,
    LinkWindow,
    ModbusSource,
    MqttSource,
    Pipeline,
    ReplaySource,
    SerialSource,
)
from gateway.configload.addresses import (
    broker_problems,
    camera_problems,
    identity_problems,
    is_loopback,
    modbus_problems,
    repository_problems,
)
from gateway.configload.document import Place
from gateway.configload.paths import Surroundings
from gateway.configload.places import outbox_place_problems
from gateway.configload.problems import Problem, did_you_mean
from gateway.ota.distances import FIRST_LOOK

_NOT_SEEN: Final = (IioSource, ModbusSource, SerialSource, MqttSource, HealthSource)
"""Sources without a picture, where zones mean nothing."""

_LEAST_BALLAST_BYTES: Final = 2 * 1024 * 1024
"""Room for one transaction of the outbox (1 MiB of rows) and its pages; with less a full disk stays full."""

_ROOT_BYTES: Final = 512 * 1024
"""More is never read of a root; it has a few kilobytes."""

_SOME_TIME_NS: Final = 1_790_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Scope:
    """What is needed to judge a configuration: the places of its values, and what paths are relative to.

    `config` may lack parts that were wrong in themselves; `places` has the paths of everything in the file.
    """

    config: Config
    places: dict[str, Place]
    surroundings: Surroundings
    complete: bool

    def error(self, path: str, message: str, remedy: str = "") -> Problem:
        place = self.place(path)
        return Problem(place.line, place.column, path, message, remedy)

    def warning(self, path: str, message: str, remedy: str = "") -> Problem:
        place = self.place(path)
        return Problem(place.line, place.column, path, message, remedy, "warning")

    def place(self, path: str) -> Place:
        """Return where a value stands, or the nearest table around it."""
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get(path, Place(1, 1))

    def entire(self, path: str, entries: list[Any]) -> bool:
        """Tell whether all entries of a list of the file are in the configuration, so that positions agree."""
        return f"{path}[{len(entries)}]" not in self.places

    def names(self, table: str) -> set[str]:
        """Return the names a table declares, those of entries with mistakes too."""
        depth = table.count(".") + 1
        inside = (path for path in self.places if path.startswith(table + "."))
        return {path.split(".")[depth] for path in inside if path.count(".") == depth and "[" not in path}


def crosscheck(scope: Scope) -> Iterator[Problem]:
    """Report what is wrong between parts that are right in themselves."""
    yield from _gateway(scope)
    yield from _sources(scope)
    for name, pipeline in scope.config.pipelines.items():
        yield from _pipeline(scope, f"pipelines.{name}", pipeline)
    if scope.complete:
        yield from _unused(scope)
    yield from _delivery(scope)
    yield from _vault(scope)
    yield from _identity(scope)
    yield from _ota(scope)
    yield from _metering(scope)
    yield from _outbox(scope)
    yield from _metrics(scope)
    if scope.surroundings.require_files:
        yield from _files(scope)


def _gateway(scope: Scope) -> Iterator[Problem]:
    zone = scope.config.gateway.time_zone
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        remedy = did_you_mean(zone, ()) or "write a name such as Europe/Berlin or UTC"
        yield scope.error("gateway.time_zone", f'no time zone is called "{zone}"', remedy)


def _sources(scope: Scope) -> Iterator[Problem]:
    for name, source in scope.config.sources.items():
        path = f"sources.{name}"
        match source:
            case MqttSource():
                if "local.broker" not in scope.places:
                    message = "an mqtt source reads from the local broker, and there is none"
                    yield scope.error(path, message, "add `local: {broker: {url: mqtt://127.0.0.1:1883}}`")
                if not source.topic or "\0" in source.topic:
                    yield scope.error(f"{path}.topic", "the topic is empty or has a NUL character", "")
            case CameraSource():
                for key, severity, message, remedy in camera_problems(source):
                    report = scope.error if severity == "error" else scope.warning
                    yield report(f"{path}.{key}", message, remedy)
            case ModbusSource():
                for key, message, remedy in modbus_problems(source):
                    yield scope.error(f"{path}.{key}", message, remedy)
            case IioSource() if not source.channels:
                yield scope.error(f"{path}.channels", "no channels", "name those to read, e.g. [in_accel_x]")
            case _:
                pass


def _pipeline(scope: Scope, path: str, pipeline: Pipeline) -> Iterator[Problem]:
    sources = scope.names("sources")
    if pipeline.source not in sources:
        message = f"no source is called `{pipeline.source}`"
        yield scope.error(f"{path}.source", message, did_you_mean(pipeline.source, sources))
    name, at, version = pipeline.model.partition("@")
    if not name or (at and not version):
        yield scope.error(f"{path}.model", "expected `name` or `name@version`", "")
    yield from _repeated(scope, f"{path}.rules", [rule.name for rule in pipeline.rules], "rule")
    yield from _repeated(scope, f"{path}.zones", [zone.name for zone in pipeline.zones], "zone")
    zones = {zone.name for zone in pipeline.zones}
    all_zones = scope.entire(f"{path}.zones", pipeline.zones)
    rules = pipeline.rules if scope.entire(f"{path}.rules", pipeline.rules) else []
    for at_rule, rule in enumerate(rules):
        if rule.zone is not None and rule.zone not in zones and all_zones:
            message = f"no zone of this pipeline is called `{rule.zone}`"
            remedy = did_you_mean(rule.zone, zones) or f"add it to `{path}.zones`"
            yield scope.error(f"{path}.rules[{at_rule}].zone", message, remedy)
        if rule.min_score and rule.hysteresis >= rule.min_score:
            message = "hysteresis is as large as min_score, so an event would never end by its score"
            yield scope.warning(f"{path}.rules[{at_rule}]", message, "choose a smaller hysteresis")
    if pipeline.zones and isinstance(scope.config.sources.get(pipeline.source), _NOT_SEEN):
        yield scope.warning(f"{path}.zones", "zones mean nothing for a source without pictures", "remove them")
    band = pipeline.interest.low_confidence
    if band is not None and band[0] > band[1]:
        message = "the lower end of the band is above the upper"
        yield scope.error(f"{path}.interest.low_confidence", message, f"write [{band[1]:g}, {band[0]:g}]")


def _repeated(scope: Scope, path: str, names: list[str], what: str) -> Iterator[Problem]:
    for name, count in Counter(names).items():
        if count > 1 and scope.complete:
            again = len(names) - 1 - names[::-1].index(name)
            yield scope.error(f"{path}[{again}].name", f"{count} {what}s are called `{name}`", "rename one")


def _unused(scope: Scope) -> Iterator[Problem]:
    used = {pipeline.source for pipeline in scope.config.pipelines.values()}
    for name in scope.config.sources:
        # A pipeline that misspells the name of its source is told elsewhere.
        if name not in used and used <= scope.names("sources"):
            yield scope.warning(f"sources.{name}", "no pipeline uses this source", "it will not be opened")
    if not scope.config.pipelines:
        yield scope.warning("pipelines", "there are no pipelines", "nothing will be watched")


def _delivery(scope: Scope) -> Iterator[Problem]:
    config = scope.config
    for at, broker in enumerate(config.cloud.brokers):
        yield from _broker(scope, f"cloud.brokers[{at}]", broker)
    if config.local.broker is not None:
        yield from _broker(scope, "local.broker", config.local.broker)
    if config.local.home_assistant.enabled and "local.broker" not in scope.places:
        message = "Home Assistant discovery is published on the local broker, and there is none"
        yield scope.error("local.home_assistant.enabled", message, "add `local.broker`")
    if not config.cloud.brokers and scope.complete:
        message = "there is no cloud broker: records stay in the outbox until it is full"
        yield scope.warning("cloud.brokers", message, "add `cloud: {brokers: [{url: mqtts://…}]}`")


def _broker(scope: Scope, path: str, broker: Broker) -> Iterator[Problem]:
    for key, severity, message, remedy in broker_problems(broker):
        report = scope.error if severity == "error" else scope.warning
        yield report(f"{path}.{key}", message, remedy)


def _vault(scope: Scope) -> Iterator[Problem]:
    config = scope.config
    vault = config.vault
    if vault.level == "tpm" and "vault.policy_key_file" not in scope.places:
        message = "level tpm needs the public key whose signed policies say when the key is given out"
        yield scope.error("vault.level", message, "add `policy_key_file`; `gateway vault policy keygen` makes one")
    if vault.level == "software":
        for key in ("tcti", "policy_key_file", "policy_directory", "pcrs"):
            if f"vault.{key}" in scope.places:
                yield scope.warning(f"vault.{key}", "has no meaning at level software", "remove it, or use level tpm")
    sealed = config.gateway.state_directory / "models"
    for at, directory in enumerate(config.models.directories):
        if directory == sealed or sealed in directory.parents:
            message = f"{sealed} is the store of sealed releases, which is always looked into"
            remedy = "remove it; keep releases in clear somewhere else"
            yield scope.error(f"models.directories[{at}]", message, remedy)


def _identity(scope: Scope) -> Iterator[Problem]:
    config = scope.config
    if config.identity is not None:
        for key, message, remedy in identity_problems(config.identity):
            yield scope.error(f"identity.{key}", message, remedy)
    named = [(f"cloud.brokers[{at}]", broker) for at, broker in enumerate(config.cloud.brokers)]
    named += [("local.broker", config.local.broker)] if config.local.broker is not None else []
    for path, broker in named:
        if broker.identity and "identity" not in scope.places:
            message = "there is no identity to show"
            yield scope.error(f"{path}.identity", message, "add `identity: {url: https://…}`, the bridge's listener")
    local = config.local.broker
    if local is not None and local.identity and any(local.url == each.url for each in config.cloud.brokers):
        # Both connections would be known by the certificate's name, and throw each other out.
        message = "with `identity`, the broker of the site must be another than that of the cloud"
        yield scope.error("local.broker.url", message, "use a broker of its own, or `cloud.publish_events` alone")


def _ota(scope: Scope) -> Iterator[Problem]:
    settings = scope.config.ota
    if settings is None:
        return
    if settings.url is not None:
        for key, message, remedy in repository_problems(settings.url):
            yield scope.error(f"ota.{key}", message, remedy)
    elif scope.complete and "cloud.brokers" not in scope.places:
        message = "there is neither an address of the repository nor a cloud broker: nothing can be fetched"
        yield scope.warning("ota", message, "add `url`, or bring releases with `gateway ota import PATH`")
    if settings.trial.min_inferences < FIRST_LOOK:
        message = f"a release may be kept before its scores are compared, from {FIRST_LOOK} answers on"
        yield scope.warning("ota.trial.min_inferences", message, f"{FIRST_LOOK} or more")


def _metering(scope: Scope) -> Iterator[Problem]:
    metering = scope.config.metering
    windows = [(f"metering.features.{name}", each.windows) for name, each in metering.features.items()]
    windows += [(f"metering.classes.{name}", each.windows) for name, each in metering.classes.items()]
    windows.append(("os", scope.config.os.windows))
    for path, entries in windows:
        if entries and scope.entire(f"{path}.windows", entries):
            yield from _windows(scope, f"{path}.windows", entries)
    brokers = scope.config.cloud.brokers
    if (metering.features or metering.classes) and brokers and all(each.metered is False for each in brokers):
        message = "no broker is metered, so these limits never apply"
        yield scope.warning("metering", message, "remove `metered: false` where they should")
    telemetry = metering.features.get("telemetry")
    if telemetry is not None and not scope.config.cloud.publish_events:
        message = "nothing is shown on the cloud's broker, so there is no telemetry to limit"
        yield scope.warning("metering.features.telemetry", message, "set cloud.publish_events, or remove it")


def _windows(scope: Scope, path: str, windows: list[LinkWindow]) -> Iterator[Problem]:
    from gateway.metering.windows import Windows  # noqa: PLC0415  # apscheduler: only where there is a window

    for at, window in enumerate(windows):
        try:
            opening = Windows([window], UTC).at(_SOME_TIME_NS)
        except ValueError as error:
            yield scope.error(f"{path}[{at}].open", str(error), "write five fields, such as `0 2 * * *`")
            continue
        if not opening.is_open and opening.until_ns is None:
            yield scope.error(f"{path}[{at}].open", "this window never opens", "is there such a day?")


def _outbox(scope: Scope) -> Iterator[Problem]:
    if scope.config.outbox.classes["critical"].on_full == "evict":
        message = "critical records will be given up when their quota is full"
        yield scope.warning("outbox.classes.critical.on_full", message, "`refuse` makes pipelines wait instead")
    if 0 < scope.config.outbox.ballast_bytes < _LEAST_BALLAST_BYTES:
        message = "so little does not get a full disk going again: one transaction alone may need more"
        remedy = f"write {_LEAST_BALLAST_BYTES} or more; 0 keeps nothing back"
        yield scope.error("outbox.ballast_bytes", message, remedy)
    for message, remedy in outbox_place_problems(scope.config, scope.surroundings.file):
        yield scope.error("outbox.file", message, remedy)


def _metrics(scope: Scope) -> Iterator[Problem]:
    metrics = scope.config.metrics
    if metrics.enabled and not is_loopback(metrics.host) and "metrics.token_file" not in scope.places:
        message = f"the metrics would be open to everyone who reaches {metrics.host or 'this machine'}"
        yield scope.error("metrics.host", message, "add `metrics.token_file`, or listen on 127.0.0.1")


def _files(scope: Scope) -> Iterator[Problem]:
    ota = scope.config.ota
    if ota is not None and not _is_readable(ota.root_file):  # a warning: pipelines run all the same
        message = f"{ota.root_file} is no file that can be read: there are no updates over the air until it is"
        yield scope.warning("ota.root_file", message, "copy the first root.json of the repository there")
    elif ota is not None and not _is_root(ota.root_file):
        message = f"{ota.root_file} is no root.json: there are no updates over the air until it is"
        yield scope.warning("ota.root_file", message, "copy the first root.json of the repository there")
    for path, file in named_files(scope.config):
        key = path.rpartition(".")[2]
        try:
            there = file.is_file()
            readable = there and _can_read(file)
        except OSError as error:
            yield scope.error(path, f"{file}: {error.strerror}", "")
            continue
        if not there:
            yield scope.error(path, f"there is no file {file}", "create it, or check with --no-files")
        elif not readable:
            yield scope.error(path, f"{file} cannot be read by this user", "give this user the right to read it")
        elif key in _SECRET_FILES and file.stat().st_mode & 0o077:
            yield scope.warning(path, f"{file} can be read by others than its owner", f"chmod 600 {file}")
    for at, directory in enumerate(scope.config.models.directories):
        if not directory.is_dir():
            yield scope.error(f"models.directories[{at}]", f"there is no directory {directory}", "create it")


_SECRET_FILES: Final = frozenset({"password_file", "query_file", "token_file", "key_file"})
_MUST_EXIST: Final = frozenset({*_SECRET_FILES, "ca_file", "certificate_file", "crl_file", "policy_key_file"})


def _is_readable(file: Path) -> bool:
    try:
        return file.is_file() and _can_read(file)
    except OSError:
        return False


class _Signed(msgspec.Struct, tag="root", tag_field="_type"):
    """What says of a document of TUF that it is a root (TUF §4.3)."""


class _Root(msgspec.Struct):
    signed: _Signed


def _is_root(file: Path) -> bool:
    """Tell whether a file looks like a root; whether it is to be believed, updates find out."""
    try:
        with file.open("rb") as opened:
            msgspec.json.decode(opened.read(_ROOT_BYTES), type=_Root)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _can_read(file: Path) -> bool:
    try:
        with file.open("rb"):
            return True
    except PermissionError:
        return False


def named_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield every file that a configuration names and that must be there, with the path of its key."""
    for name, source in config.sources.items():
        if isinstance(source, ReplaySource):
            yield f"sources.{name}.file", source.file
    yield from _files_below("", config)


def _files_below(path: str, part: object) -> Iterator[tuple[str, Path]]:
    if isinstance(part, msgspec.Struct):
        for key in part.__struct_fields__:
            value = getattr(part, key)
            below = f"{path}.{key}" if path else key
            if key in _MUST_EXIST and isinstance(value, Path):
                yield below, value
            else:
                yield from _files_below(below, value)
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _files_below(f"{path}.{key}", value)
    elif isinstance(part, list):
        for at, value in enumerate(part):
            yield from _files_below(f"{path}[{at}]", value)
