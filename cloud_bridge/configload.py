"""Reads the configuration file, and tells every mistake in it with its place."""

import difflib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from fsspec.registry import available_protocols

from cloud_bridge.address import broker_address, is_loopback
from cloud_bridge.config import Config, LocalIssuer
from cloud_bridge.errors import ConfigError

MAX_BYTES: Final = 256 * 1024
MAX_PROBLEMS: Final = 50
_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?$", re.S)
_STEP: Final = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")

Path_ = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake; line and column count from 1, 0 when it has no place."""

    line: int
    column: int
    where: str  # e.g. `brokers[0].url`
    message: str

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line else ""
        return f"{place}{f'{self.where}: ' if self.where else ''}{self.message}"


class InvalidConfigError(ConfigError):
    """A file with mistakes; all of them."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{name}: {problem}" for problem in problems))
        self.problems = problems


def load(file: Path) -> Config:
    """Read a configuration file; relative paths in it mean: beside the file.

    Raises:
        InvalidConfigError: it has mistakes.
        ConfigError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)  # enough to know; a device is not read to its end, which it may not have
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_BYTES} bytes; this is hardly a configuration file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    return parse(text, name=str(file), directory=file.parent)


def parse(text: str, *, name: str = "configuration", directory: Path = Path()) -> Config:
    """Check the text of a configuration.

    Raises:
        InvalidConfigError: it has mistakes.
    """
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        problem = Problem(line, column, "", f"not YAML: {error.problem}; check indentation, quotes and colons")
        raise InvalidConfigError(name, [problem]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidConfigError(name, [Problem(0, 0, "", f"not YAML: {error}")]) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InvalidConfigError(name, [Problem(1, 1, "", "expected a table of `key: value` lines at the top")])
    if (knot := _knot(tree)) is not None:
        place = knot.start_mark.line + 1, knot.start_mark.column + 1
        raise InvalidConfigError(name, [Problem(*place, "", "stands inside what it names; write the value out")])
    problems = _doubled(tree)
    for path in _endless(values):
        problems.append(Problem(*_place(tree, path), _shown(path), "expected a number that ends; write it out"))
    config = _converted(values, tree, problems)
    if config is not None:
        problems.extend(_contradictions(config, tree))
    if problems or config is None:
        raise InvalidConfigError(name, sorted(problems, key=lambda p: (p.line, p.column)))
    return resolved(config, directory)


def schema() -> dict[str, Any]:
    """Return the JSON schema of the file."""
    found = msgspec.json.schema(Config, schema_hook=lambda _: {"type": "string", "description": "a path"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cloud-bridge configuration", **found}


def contradictions(config: Config) -> list[Problem]:
    """Check what the types cannot."""
    return _contradictions(config, None)


def _converted(values: Any, tree: yaml.Node | None, problems: list[Problem]) -> Config | None:
    """Convert, and after each mistake go on without the part that holds it, so that all are found."""
    for _ in range(MAX_PROBLEMS):
        try:
            return msgspec.convert(values, Config, dec_hook=_path)
        except msgspec.ValidationError as error:
            match = _AT.match(str(error))
            what, path = (match["what"], _steps(match["path"] or "$")) if match else (str(error), ())
            unknown = _UNKNOWN.search(what)
            if unknown:
                path = (*path, unknown[1])
                what = f"unknown key{_meant(path)}"
            line, column = _place(tree, path)
            problems.append(Problem(line, column, _shown(path), what[:1].lower() + what[1:]))
            if not _remove(values, path):
                return None
    return None


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("expected a path")


def _contradictions(config: Config, tree: yaml.Node | None) -> list[Problem]:
    problems = []
    for at, broker in enumerate(config.brokers):
        try:
            broker_address(broker)
        except ConfigError as error:
            problems.append(Problem(*_place(tree, ("brokers", at)), f"brokers[{at}]", str(error)))
        if broker.protocol == "3.1.1" and config.ingest.subscription == "shared":
            message = "shared subscriptions are of MQTT 5; set `subscription: plain` for a 3.1.1 broker"
            problems.append(Problem(*_place(tree, ("brokers", at, "protocol")), "ingest.subscription", message))
    if config.ingest.subscription == "plain" and config.ingest.workers > 1:
        message = "with `subscription: plain` every worker would get every message; set `workers: 1`"
        problems.append(Problem(*_place(tree, ("ingest", "workers")), "ingest.workers", message))
    if config.metrics.port is not None and not is_loopback(config.metrics.host):
        message = "metrics have no token of their own; let `/metrics` of the console serve others, with its token"
        problems.append(Problem(*_place(tree, ("metrics", "host")), "metrics.host", message))
    if not config.store.url.startswith(("sqlite:///", "postgresql://", "postgres://")):
        message = "expected sqlite:///PATH or postgresql://HOST/DATABASE"
        problems.append(Problem(*_place(tree, ("store", "url")), "store.url", message))
    registry = config.registry
    if registry is not None:
        if not registry.url:
            message = "expected a directory, or what fsspec knows, as s3://bucket/prefix"
            problems.append(Problem(*_place(tree, ("registry", "url")), "registry.url", message))
        elif "://" in registry.url and (kind := registry.url.partition("://")[0]) not in available_protocols():
            message = f"{kind}:// is no kind of place that is known; write a directory, or as s3://bucket/prefix"
            problems.append(Problem(*_place(tree, ("registry", "url")), "registry.url", message))
        elif "://" not in registry.url and _is_within(registry.keys, Path(registry.url)):
            message = f"private keys must not lie in what is served: choose a directory outside of {registry.url}"
            problems.append(Problem(*_place(tree, ("registry", "keys")), "registry.keys", message))
    for what in ("psi", "outside"):
        warning, alarm = getattr(config.drift, f"{what}_warning"), getattr(config.drift, f"{what}_alarm")
        if warning > alarm:
            message = f"{warning:g} is above drift.{what}_alarm, {alarm:g}: there would be no warning before the alarm"
            problems.append(Problem(*_place(tree, ("drift", f"{what}_warning")), f"drift.{what}_warning", message))
    return problems


def away(config: Config) -> list[Problem]:
    """Name what a configuration has and this host has not; it may be checked on another one than it is for."""
    identity = config.identity
    named: list[tuple[str, Path | None]] = [
        ("store.password_file", config.store.password_file),
        ("console.token_file", config.console.token_file),
    ]
    for at, broker in enumerate(config.brokers):
        keys = ("password_file", "ca_file", "crl_file", "certificate_file", "key_file")
        named += [(f"brokers[{at}].{key}", getattr(broker, key)) for key in keys]
    if identity is not None:
        named.append(("identity.ek_roots", identity.ek_roots))
        if not isinstance(identity.issuer, LocalIssuer):
            named.append(("identity.issuer.trust_anchors", identity.issuer.trust_anchors))
    return [
        Problem(0, 0, where, f"{place} is not there: on the host of the bridge it must be")
        for where, place in named
        if place is not None and not _is_there(place)
    ]


def _is_there(place: Path) -> bool:
    try:
        place.stat()
    except PermissionError:
        return True  # for all that whoever checks may see
    except OSError:
        return False
    return True


def _knot(tree: yaml.Node | None) -> yaml.Node | None:
    """Find a part that has itself inside, by way of its anchor; None where there is none."""
    done: set[int] = set()

    def look(node: yaml.Node, around: frozenset[int]) -> yaml.Node | None:
        if id(node) in around:
            return node
        if id(node) in done or not isinstance(node, yaml.CollectionNode):
            return None
        inside = around | {id(node)}
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        found = next((knot for part in parts if (knot := look(part, inside)) is not None), None)
        done.add(id(node))
        return found

    return look(tree, frozenset()) if tree is not None else None


def _endless(part: Any, at: Path_ = ()) -> list[Path_]:
    """Find numbers without an end, which YAML can write: as a time they are no time at all."""
    if isinstance(part, float):
        return [] if math.isfinite(part) else [at]
    inside = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [path for key, each in inside for path in _endless(each, (*at, key if isinstance(key, int) else str(key)))]


def _is_within(place: Path, directory: Path) -> bool:
    """Tell whether one place is in another, both beside the same file; links are left to whoever makes them."""
    here = Path.cwd()
    return Path(os.path.normpath(here / place)).is_relative_to(os.path.normpath(here / directory))


def _doubled(tree: yaml.Node | None) -> list[Problem]:
    """Find keys that are given twice; the library takes the last one silently."""
    problems, waiting = [], [tree] if tree else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if str(key.value) in seen:
                    mark = key.start_mark
                    problems.append(Problem(mark.line + 1, mark.column + 1, str(key.value), "given twice; remove one"))
                seen.add(str(key.value))
                waiting.append(value)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
    return problems


def _steps(path: str) -> Path_:
    return tuple(int(index) if index else key for key, index in _STEP.findall(path))


def _shown(path: Path_) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _place(tree: yaml.Node | None, path: Path_) -> tuple[int, int]:
    """Return where a part stands, or the nearest part around it."""
    node, mark = tree, tree.start_mark if tree else None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == step), None)
            if found is None:
                break
            mark, node = found[0].start_mark, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.start_mark
        else:
            break
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _remove(values: Any, path: Path_) -> bool:
    for step in path[:-1]:
        values = values[step]
    if not path:
        return False
    last = path[-1]
    if isinstance(values, dict) and last in values:
        del values[last]
        return True
    if isinstance(values, list) and isinstance(last, int):
        del values[last]
        return True
    return False


def _meant(path: Path_) -> str:
    kinds: tuple[Any, ...] = (Config,)
    for step in path[:-1]:
        if isinstance(step, str):
            types = [field.type for kind in kinds for field in msgspec.structs.fields(kind) if field.name == step]
            kinds = tuple(types[:1]) or kinds[:1]
        parts: tuple[Any, ...] = getattr(kinds[0], "__args__", kinds)
        kinds = tuple(part for part in parts if hasattr(part, "__struct_fields__")) or parts[:1]
    # Of a table that can be of several types, what any of them knows.
    known = list(dict.fromkeys(field.name for kind in kinds for field in msgspec.structs.fields(kind)))
    close = difflib.get_close_matches(str(path[-1]), known, 1)
    return f"; did you mean `{close[0]}`?" if close else f"; known here: {', '.join(known)}"


def resolved(config: Config, directory: Path) -> Config:
    """Make paths absolute: relative ones mean beside the file."""
    replace = msgspec.structs.replace

    def beside(file: Path | None) -> Path | None:
        return None if file is None else directory / file

    brokers = [
        replace(
            broker,
            password_file=beside(broker.password_file),
            ca_file=beside(broker.ca_file),
            crl_file=beside(broker.crl_file),
            certificate_file=beside(broker.certificate_file),
            key_file=beside(broker.key_file),
        )
        for broker in config.brokers
    ]
    store = replace(config.store, password_file=beside(config.store.password_file))
    console = replace(config.console, token_file=beside(config.console.token_file))
    identity = config.identity
    if identity is not None:
        issuer = identity.issuer
        if not isinstance(issuer, LocalIssuer):
            anchors, revocations = directory / issuer.trust_anchors, beside(issuer.revocations)
            issuer = replace(issuer, trust_anchors=anchors, revocations=revocations)
        identity = replace(
            identity,
            issuer=issuer,
            directory=beside(identity.directory),
            ek_roots=beside(identity.ek_roots),
            broker_directory=beside(identity.broker_directory),
            broker_pid_file=beside(identity.broker_pid_file),
        )
    registry = config.registry
    if registry is not None:
        url = registry.url if "://" in registry.url else str(directory / registry.url)
        registry = replace(registry, url=url, keys=directory / registry.keys)
    drift = replace(
        config.drift,
        directory=beside(config.drift.directory),
        releases=[directory / place for place in config.drift.releases],
    )
    return replace(
        config, brokers=brokers, store=store, console=console, identity=identity, registry=registry, drift=drift
    )
