"""YAML text as a tree that knows its places.

The tree is built from parser events, without recursion and without PyYAML's constructors, so nothing in a
file can run code, and the limits hold before memory is spent. Scalars follow the YAML 1.2 core schema:
`22:00` is text (in YAML 1.1 it is the number 1320), and so are `on`, `off`, `yes` and `no`.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Final, Protocol

import yaml

from gateway.configload.problems import Problem

MAX_TEXT_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 24
MAX_NODES: Final = 50_000
"""Counted with every alias unfolded, so that a few lines cannot stand for a billion values."""

_NULL: Final = re.compile(r"~|null|Null|NULL|")
_BOOL: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT: Final = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_TAG_PREFIX: Final = "tag:yaml.org,2002:"
_HARMLESS_TAGS: Final = frozenset(_TAG_PREFIX + name for name in ("map", "seq", "str", "int", "float", "bool", "null"))

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value."""

    place: Place
    value: Plain


@dataclass(slots=True)
class Sequence:
    """A list."""

    place: Place
    items: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Member:
    """One `key: value` of a mapping."""

    key: str
    place: Place  # of the key
    node: "Node"


@dataclass(slots=True)
class Mapping:
    """A table; keys are text, and each is there once."""

    place: Place
    members: dict[str, Member] = field(default_factory=dict)


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Document:
    """A file as far as it could be read; without a root when it could not."""

    root: Mapping | None
    problems: list[Problem]


class _StoppedError(Exception):
    """The text cannot be read any further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def parse(text: str | bytes) -> Document:
    """Parse one YAML document whose root is a mapping."""
    builder = _Builder()
    try:
        root = builder.build(_decoded(text))
    except _StoppedError as stopped:
        return Document(None, [*builder.problems, stopped.problem])
    except yaml.MarkedYAMLError as error:
        return Document(None, [*builder.problems, _syntax(error)])
    except yaml.reader.ReaderError as error:
        line, column = _place_in(text, error.position)
        message = f"the character {error.character!r} is not allowed in YAML"
        return Document(None, [Problem(line, column, "", message, "remove it, or write it escaped in double quotes")])
    return Document(root, builder.problems)


def _decoded(text: str | bytes) -> str:
    if len(text) > MAX_TEXT_BYTES:
        message = f"the file has {len(text)} bytes, at most {MAX_TEXT_BYTES} are read"
        raise _StoppedError(Problem(1, 1, "", message, "this is hardly a configuration file"))
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        column = error.start - text.rfind(b"\n", 0, error.start)
        message = f"byte 0x{text[error.start]:02x} is not UTF-8"
        raise _StoppedError(Problem(line, column, "", message, "save the file as UTF-8")) from error


def _place_in(text: str | bytes, position: int) -> tuple[int, int]:
    before = (text if isinstance(text, str) else text.decode("utf-8", "replace"))[:position]
    return before.count("\n") + 1, position - before.rfind("\n")


class _Mark(Protocol):
    """A place as PyYAML gives it, counting from 0."""

    line: int
    column: int


def _place(mark: _Mark | None) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = _place(mark)
    message = f"not YAML: {error.problem or 'syntax error'}"
    if error.context and error.context_mark:
        message += f" ({error.context} that began at line {error.context_mark.line + 1})"
    remedy = "indent with spaces" if "'\\t'" in (error.problem or "") else "check indentation, quotes and colons"
    return Problem(place.line, place.column, "", message, remedy)


@dataclass(slots=True)
class _Open:
    """A list or table that is still being read."""

    node: Sequence | Mapping
    anchor: str | None
    size: int = 1  # nodes in it, aliases unfolded
    key: tuple[str, Place] | None = None  # of a table: the key whose value comes next
    seen: dict[str, Place] = field(default_factory=dict)


class _Builder:
    """Turns parser events into a tree."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._root: Node | None = None
        self._nodes = 0

    def build(self, text: str) -> Mapping:
        documents = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            place = _place(event.start_mark)
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise _stop(place, "a second document begins here", "keep one document; remove this `---`")
                case yaml.ScalarEvent():
                    self._put(self._scalar(event, place), 1, event.anchor, place)
                case yaml.AliasEvent():
                    node, size = self._aliased(event.anchor or "", place)
                    self._put(node, size, None, place)
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._begin(event, place)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    closed = self._open.pop()
                    self._put(closed.node, closed.size, closed.anchor, closed.node.place)
                case _:
                    pass
        match self._root:
            case Mapping() as root:
                return root
            case None | Scalar(value=None):
                raise _stop(Place(1, 1), "the file is empty", "`gateway config example` prints one to begin with")
            case other:
                raise _stop(other.place, "expected a table of `key: value` lines at the top", "")

    def _begin(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent, place: Place) -> None:
        self._check_tag(event.tag, place)
        if self._open and isinstance(self._open[-1].node, Mapping) and self._open[-1].key is None:
            raise _stop(place, "a key must be text, not a list or a table", "quote the key")
        if len(self._open) >= MAX_DEPTH:
            raise _stop(place, f"nested deeper than {MAX_DEPTH} levels", "no part of the configuration is so deep")
        self._count(1, place)
        node = Sequence(place) if isinstance(event, yaml.SequenceStartEvent) else Mapping(place)
        self._open.append(_Open(node, event.anchor))

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> Scalar:
        self._check_tag(event.tag, place)
        self._count(1, place)
        plain = event.implicit[0] and event.tag is None
        if not plain and event.tag in (None, "!", _TAG_PREFIX + "str"):
            return Scalar(place, event.value)
        if plain and _NOT_FINITE.fullmatch(event.value):
            self._report(place, f"`{event.value}` is not a finite number", "write a number")
            return Scalar(place, 0)
        return Scalar(place, resolved(event.value))

    def _aliased(self, anchor: str, place: Place) -> tuple[Node, int]:
        if anchor not in self._anchors:
            inside = any(part.anchor == anchor for part in self._open)
            message = f"`*{anchor}` stands inside what it names" if inside else f"no anchor `&{anchor}` stands above"
            raise _stop(place, message, "write the value out")
        node, size = self._anchors[anchor]
        self._count(size, place)
        return node, size

    def _count(self, nodes: int, place: Place) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _stop(place, f"more than {MAX_NODES} values, aliases unfolded", "this is hardly a configuration")

    def _put(self, node: Node, size: int, anchor: str | None, place: Place) -> None:
        if anchor is not None:
            self._anchors[anchor] = (node, size)
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        parent.size += size
        if isinstance(parent.node, Sequence):
            parent.node.items.append(node)
        elif parent.key is None:
            parent.key = (self._key(node, place), place)
        else:
            key, key_place = parent.key
            parent.key = None
            if key == "<<":
                self._merge(parent.node, node, key_place)
            else:
                self._set(parent, parent.node, Member(key, key_place, node))

    def _key(self, node: Node, place: Place) -> str:
        if isinstance(node, Scalar) and node.value is not None:
            # `1:` or `true:` as a key is meant as the word that stands there.
            return str(node.value).lower() if isinstance(node.value, bool) else str(node.value)
        raise _stop(place, "a key must be text", "quote the key")

    def _set(self, parent: _Open, table: Mapping, member: Member) -> None:
        first = parent.seen.get(member.key)
        if first is not None:
            message = f"the key `{member.key}` is already given in line {first.line}"
            self._report(member.place, message, "remove one of the two")
            return
        parent.seen[member.key] = member.place
        table.members[member.key] = member

    def _merge(self, table: Mapping, node: Node, place: Place) -> None:
        # A key of the table's own wins over a merged one, whichever comes first.
        sources = node.items if isinstance(node, Sequence) else [node]
        for source in sources:
            if not isinstance(source, Mapping):
                self._report(place, "`<<` takes a table or a list of tables", "write `<<: *name`")
                continue
            for member in source.members.values():
                if member.key not in table.members:
                    table.members[member.key] = member

    def _check_tag(self, tag: str | None, place: Place) -> None:
        if tag is not None and tag != "!" and tag not in _HARMLESS_TAGS:
            self._report(place, f"the tag `{tag.replace(_TAG_PREFIX, '!!')}` is not accepted", "remove the tag")

    def _report(self, place: Place, message: str, remedy: str) -> None:
        self.problems.append(Problem(place.line, place.column, "", message, remedy))


def _stop(place: Place, message: str, remedy: str) -> _StoppedError:
    return _StoppedError(Problem(place.line, place.column, "", message, remedy))


def resolved(text: str) -> Plain:
    """Resolve a plain scalar by the YAML 1.2 core schema (§10.3.2); numbers too long to be meant stay text."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text
