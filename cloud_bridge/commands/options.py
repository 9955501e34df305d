"""What several commands share: where the configuration and the store are, and which records are meant."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from cloud_bridge.config import Broker, Config
from cloud_bridge.configload import InvalidConfigError, contradictions, load
from cloud_bridge.control import Answer, Question, RunningBridge, answer
from cloud_bridge.cursors import BadCursorError, place_of
from cloud_bridge.errors import StoreInUseError
from cloud_bridge.store.base import Reader, RecordFilter, RollupPlace
from cloud_bridge.store.opening import open_reader, open_store, sqlite_path
from cloud_bridge.values import GapPlace, LetterPlace
from gateway.wire.messages import CLASSES
from gateway.wire.plain import plain, plain_json, plain_lines

DEFAULT_FILE: Final = Path("/etc/sluice/cloud-bridge.yaml")

FAILED: Final = 1
WRONG_USAGE: Final = 2
NOT_ALL: Final = 3

MAX_NUMBER: Final = 2**62
"""Of anything that is counted or numbered: what databases can hold, and one more."""

F = TypeVar("F", bound=Callable[..., Any])

_AGO: Final = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where to find configuration and store, from the command line."""

    file: Path | None
    store_url: str | None

    def config(self, broker_url: str | None = None) -> Config:
        """Read the configuration, or take the defaults, and put the options over it.

        Raises:
            ConfigError: it cannot be used.
        """
        file = self.file if self.file is not None or not DEFAULT_FILE.exists() else DEFAULT_FILE
        config = Config() if file is None else load(file)
        if self.store_url is not None:
            store = msgspec.structs.replace(config.store, url=self.store_url)
            config = msgspec.structs.replace(config, store=store)
        if broker_url is not None:
            config = msgspec.structs.replace(config, brokers=[Broker(url=broker_url)])
        problems = contradictions(config)
        if problems:
            raise InvalidConfigError("command line", problems)
        return config

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open the store for reading."""
        reader = open_reader(self.config().store)
        try:
            yield reader
        finally:
            reader.close()

    @contextmanager
    def writer(self) -> Iterator[Callable[[Question], Answer]]:
        """Write into the store: directly, or through the running bridge that has it."""
        config = self.config()
        path = sqlite_path(config.store.url)
        try:
            store = open_store(config.store)
        except StoreInUseError:
            if path is None:
                raise
            bridge = RunningBridge(path.parent)
            try:
                yield bridge.ask
            finally:
                bridge.close()
            return
        try:
            yield lambda question: answer(store, config.ingest.root, question)
        finally:
            store.close()


def placed(command: F) -> F:
    """Add --config and --store; the command gets them as `file` and `store_url`."""
    command = click.option(
        "--store",
        "store_url",
        metavar="URL",
        help="Instead of the file's store.url: sqlite:////absolute/path.db, sqlite:///relative.db, postgresql://…",
    )(command)
    return click.option(
        "--config",
        "file",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"Configuration file; {DEFAULT_FILE} if it is there.",
    )(command)


class Share(click.FloatRange):
    """A share from a least one to 1. No `nan`, which is within any range to click, and which no database gives back."""

    def __init__(self, least: float = 0.0) -> None:
        super().__init__(least, 1.0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        found = super().convert(value, param, ctx)
        return self.fail(f"{value!r} is no number", param, ctx) if math.isnan(found) else found


class Directory(click.Path):
    """A directory to write into. An empty name is a variable that was not set: not the current directory."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        return super().convert(value, param, ctx) if value != "" else self.fail("no directory is named", param, ctx)


class Time(click.ParamType[int]):
    """A point in time as nanoseconds: RFC 3339, or how long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click.ParamType."""
        if isinstance(value, int):
            return value
        ago = _AGO.fullmatch(value)
        try:
            if ago:
                at = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            else:
                at = datetime.fromisoformat(value)
                at = at if at.tzinfo else at.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither like 2026-01-31T12:00:00Z nor like 15m, 6h or 2d", param, ctx)
        if not 1970 <= at.year <= 2200:
            self.fail(f"{value!r} is not between 1970 and 2200", param, ctx)
        return int(at.timestamp() * 1e9)


class Cursor(click.ParamType[GapPlace | LetterPlace | RollupPlace]):
    """Where a page of a list ended."""

    name = "cursor"

    def __init__(self, kind: type[GapPlace | LetterPlace | RollupPlace]) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> GapPlace | LetterPlace | RollupPlace:
        """See click.ParamType."""
        if isinstance(value, self._kind):
            return value
        try:
            return place_of(value, self._kind)
        except BadCursorError as error:
            self.fail(f"{value!r} is {error}", param, ctx)


def tell_more(before: str | int) -> None:
    """Say how to go on, where it is in nobody's way."""
    say(f"there is more: --before {before}", err=True)


def filtered(command: F) -> F:
    """Add the options that choose records; `wanted` makes a filter of them."""
    for option in (
        click.option("--until", type=Time(), help="Received before then."),
        click.option("--since", type=Time(), help="Received since 2026-01-31T12:00:00Z, or 15m, 6h, 2d ago."),
        click.option("--kind", help="Of this kind only: event, measure, evidence, eviction, notice."),
        click.option("--class", "record_class", type=click.Choice(CLASSES), help="Of this class only."),
        click.option("--pipeline", help="Of this pipeline only."),
        click.option("--gateway", help="Of this gateway only."),
    ):
        command = option(command)
    return command


def wanted(options: dict[str, Any]) -> RecordFilter:
    """Take what `filtered` has added out of a command's options."""
    return RecordFilter(
        gateway=options["gateway"],
        pipeline=options["pipeline"],
        record_class=options["record_class"],
        kind=options["kind"],
        since_ns=options["since"],
        until_ns=options["until"],
    )


def put(value: object) -> None:
    """Print one line of JSON, in which nothing acts on a terminal or ends the line."""
    click.echo(plain_json(msgspec.json.encode(value)))


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text for people; what others have put into it does nothing to their terminal."""
    click.echo(plain_lines(text), err=err, nl=nl)


def say_line(text: str) -> None:
    """Print one line for people, also where others have put line ends into it."""
    click.echo(plain(text))
