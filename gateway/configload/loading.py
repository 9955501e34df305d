"""Reads a configuration file: parse, check against the types, check the parts against each other."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from msgspec import inspect

from gateway.config import DEFAULT_QUOTAS, CameraSource, Config
from gateway.configload.crosscheck import Scope, crosscheck
from gateway.configload.document import MAX_TEXT_BYTES, Document, parse
from gateway.configload.paths import Surroundings
from gateway.configload.problems import Problem
from gateway.configload.typed import Walk
from gateway.errors import ConfigAwayError, ConfigError

PASSING: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EAGAIN, errno.EINTR}
    | {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
"""Errors of a failing disk, of a mount that is away, of a machine short of something: not what a person wrote."""


class InvalidConfigError(ConfigError):
    """A configuration with mistakes, all of them."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.told(file) for problem in problems))
        self.file = file
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of reading a file: a configuration, or errors; perhaps warnings with either."""

    config: Config | None
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        """The problems that make the file unusable."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """The problems that a person should look at, some day."""
        return [problem for problem in self.problems if problem.severity == "warning"]


def load(file: Path, *, environment: Mapping[str, str] = os.environ) -> Config:
    """Read a configuration file for use.

    Raises:
        InvalidConfigError: the file has mistakes; the error tells all of them.
        ConfigError: the file cannot be read.
    """
    reading = read(file, environment=environment)
    if reading.config is None:
        raise InvalidConfigError(str(file), reading.errors)
    return reading.config


def read(
    file: Path,
    *,
    require_files: bool = True,
    take_stock: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Reading:
    """Read a configuration file; mistakes are in the result.

    `take_stock` also looks for video files and into the manifests of the models that are named. A gateway that starts
    does not ask for that: one missing model stops its own pipeline and no other, and may be installed meanwhile.

    Raises:
        ConfigError: the file cannot be read at all; ConfigAwayError where that may pass.
    """
    try:
        with file.open("rb") as stream:
            # One byte more than allowed is enough to know; a device or a huge file is not read to its end.
            text = stream.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        if error.errno in PASSING:
            raise ConfigAwayError(f"{file}: {error.strerror}; look at the disk that it is on (`dmesg`)") from error
        remedy = "`gateway config example` prints one to begin with" if isinstance(error, FileNotFoundError) else ""
        message = f"{file}: {error.strerror or error}"
        raise ConfigError(f"{message}; {remedy}" if remedy else message) from error
    place = file.absolute()
    return interpret(text, Surroundings(place.parent, environment, require_files, take_stock, place))


def check(
    text: str | bytes,
    *,
    directory: Path | None = None,
    require_files: bool = True,
    environment: Mapping[str, str] = os.environ,
) -> list[Problem]:
    """Return every mistake in a configuration; relative paths are resolved against `directory`."""
    base = (directory or Path()).absolute()
    return interpret(text, Surroundings(base, environment, require_files)).problems


def interpret(text: str | bytes, surroundings: Surroundings) -> Reading:
    """Turn the text of a configuration into the configuration and its problems, in the order of the file."""
    document = parse(text)
    problems = list(document.problems)
    config = None
    if document.root is not None:
        walk = Walk(surroundings)
        config = _typed(document, walk, problems)
    problems.sort(key=lambda problem: (problem.line, problem.column))
    if any(problem.severity == "error" for problem in problems):
        config = None
    return Reading(config, problems)


def _typed(document: Document, walk: Walk, problems: list[Problem]) -> Config | None:
    assert document.root is not None
    kind = inspect.type_info(Config)
    assert isinstance(kind, inspect.StructType)
    plain = walk.members(document.root, kind, "", {})
    problems += walk.problems
    complete = not problems
    plain.setdefault("gateway", {"id": "unknown"})
    plain.setdefault("sources", {})
    plain.setdefault("pipelines", {})
    plain.setdefault("vault", {"level": "software"})
    _merge_quotas(plain)
    try:
        config = msgspec.convert(plain, Config, dec_hook=_path_of)
    except msgspec.ValidationError as error:
        # The walk above should have found it; this is the last net.
        problems.append(Problem(1, 1, "", str(error)))
        return None
    config = _with_absolute_devices(config, walk.surroundings.directory)
    scope = Scope(config, walk.places, walk.surroundings, complete)
    found = list(crosscheck(scope))
    if walk.surroundings.take_stock:
        from gateway.configload.inventory import check_inventory  # noqa: PLC0415  # NumPy: no other command waits for it

        found += check_inventory(scope)
    # Nothing is said about a value that only stands in for one that was told to be wrong.
    problems += [problem for problem in found if problem.path not in walk.replaced]
    return config


def _path_of(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    # What msgspec asks a hook to raise for a type that is not its own.
    raise NotImplementedError(f"no conversion to {kind}")


def _merge_quotas(plain: dict[str, object]) -> None:
    """Lay what the file says of a class over that class's own defaults, not over those of the type."""
    outbox = plain.get("outbox")
    if not isinstance(outbox, dict) or not isinstance(outbox.get("classes"), dict):
        return
    given = outbox["classes"]
    outbox["classes"] = {
        name: msgspec.structs.asdict(quota) | given.get(name, {}) for name, quota in DEFAULT_QUOTAS.items()
    }


def _with_absolute_devices(config: Config, directory: Path) -> Config:
    """A camera's device may be a video file; like every path it is relative to the configuration file."""
    sources = {
        name: msgspec.structs.replace(source, device=str(directory / source.device))
        if isinstance(source, CameraSource) and source.device and "://" not in source.device
        else source
        for name, source in config.sources.items()
    }
    return msgspec.structs.replace(config, sources=sources)
