"""Checks a tree against the configuration types, and reports every mistake.

What is wrong is left out of the result, so that the checks of one part against another still see the rest.
"""

import re
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec import inspect

from gateway.configload.document import Mapping, Member, Node, Place, Scalar, Sequence
from gateway.configload.paths import Surroundings, UnusablePathError
from gateway.configload.problems import Problem, did_you_mean
from gateway.configload.words import MISSING, expected, found, is_secret

Converted = object
WRONG: Final = object()
"""Stands for a value that could not be used; already reported."""


@dataclass(slots=True)
class Walk:
    """One pass over a tree: what was found wrong, and the place of every path that was seen."""

    surroundings: Surroundings
    problems: list[Problem] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)  # paths whose value is only a stand-in

    def value(self, node: Node, kind: inspect.Type, path: str) -> Converted:
        """Return the value as msgspec can convert it, or `WRONG`."""
        self.places.setdefault(path, node.place)
        match kind:
            case inspect.UnionType():
                return self._union(node, kind, path)
            case inspect.StructType():
                return self._struct(node, kind, path, {})
            case inspect.DictType():
                return self._dict(node, kind, path)
            case inspect.ListType() | inspect.VarTupleType():
                return self._list(node, kind, path)
            case inspect.TupleType():
                return self._tuple(node, kind, path)
            case _ if isinstance(node, Scalar) and node.value is not None:
                return self._scalar(node, kind, path)
            case _:
                return self._unexpected(node, kind, path)

    def report(self, place: Place, path: str, message: str, remedy: str = "") -> Converted:
        self.problems.append(Problem(place.line, place.column, path, message, remedy))
        return WRONG

    def _unexpected(self, node: Node, kind: inspect.Type, path: str) -> Converted:
        remedy = ""
        if isinstance(node, Scalar) and node.value is None:
            remedy = "give a value, or remove the key"
        elif isinstance(kind, inspect.ListType | inspect.VarTupleType) and isinstance(node, Scalar):
            remedy = f"put it into a list: [{node.value}]"
        elif isinstance(kind, inspect.DictType | inspect.StructType) and isinstance(node, Sequence):
            remedy = "write `key: value` lines, without `-`"
        # A secret put where it does not belong must not reach a log by way of this message.
        what = "something else" if is_secret(_key_of(path)) else found(node)
        return self.report(node.place, path, f"expected {expected(kind)}, found {what}", remedy)

    # ---- tables ----------------------------------------------------------------------------------

    def _struct(self, node: Node, kind: inspect.StructType, path: str, elsewhere: dict[str, list[str]]) -> Converted:
        if not isinstance(node, Mapping):
            return self._unexpected(node, kind, path)
        result = self.members(node, kind, path, elsewhere)
        for each in kind.fields:
            if each.required and each.encode_name not in result:
                # What stands beside it is still checked against the rest of the file.
                stand_in = stand_in_for(each.type)
                if stand_in is WRONG:
                    return WRONG
                result[each.encode_name] = stand_in
                self.replaced.add(_join(path, each.encode_name))
        return result

    def members(
        self, node: Mapping, kind: inspect.StructType, path: str, elsewhere: dict[str, list[str]]
    ) -> dict[str, Converted]:
        """Return the usable members of a table; `elsewhere` tells which sibling types have a key."""
        fields = {f.encode_name: f for f in kind.fields}
        result: dict[str, Converted] = {}
        for key, member in node.members.items():
            below = _join(path, key)
            self.places.setdefault(below, member.place)
            if key == kind.tag_field:
                result[key] = kind.tag
            elif key not in fields:
                self._unknown_key(member, below, fields, elsewhere)
            else:
                converted = self.value(member.node, fields[key].type, below)
                if converted is not WRONG:
                    result[key] = converted
        for name, wanted in fields.items():
            if wanted.required and name not in node.members:
                place = self.places.get(path, node.place)
                remedy = MISSING.get(_join(path, name), f"add `{name}:` with {expected(wanted.type)}")
                self.report(place, path, f"`{name}` is missing", remedy)
        return result

    def _unknown_key(
        self, member: Member, path: str, fields: dict[str, inspect.Field], elsewhere: dict[str, list[str]]
    ) -> None:
        key = member.key
        by_file = next((name for name in fields if name in {f"{key}_file", "password_file", "token_file"}), None)
        if is_secret(key) and by_file is not None:
            message = f"unknown key `{key}`: secrets are never written into this file"
            remedy = f"put the secret into a file of its own, remove it here, and give `{by_file}: PATH`"
        elif key in elsewhere:
            message = f"unknown key `{key}`"
            remedy = f"it belongs to type {' or '.join(elsewhere[key])}"
        else:
            message = f"unknown key `{key}`"
            remedy = did_you_mean(key, fields)
        self.report(member.place, path, message, remedy)

    def _tagged(self, node: Node, options: Seq[inspect.StructType], path: str) -> Converted:
        if not isinstance(node, Mapping):
            return self._unexpected(node, options[0], path)
        tag_field = options[0].tag_field or "type"
        tags = {str(option.tag): option for option in options}
        member = node.members.get(tag_field)
        if member is None:
            remedy = f"add `{tag_field}:` with one of {', '.join(sorted(tags))}"
            return self.report(node.place, path, f"`{tag_field}` is missing", remedy)
        tag = member.node.value if isinstance(member.node, Scalar) else None
        chosen = tags.get(str(tag))
        if chosen is None:
            message = f"unknown {tag_field}, found {found(member.node)}"
            return self.report(member.node.place, _join(path, tag_field), message, did_you_mean(str(tag), tags))
        elsewhere: dict[str, list[str]] = {}
        for option in options:
            for each in option.fields:
                elsewhere.setdefault(each.encode_name, []).append(str(option.tag))
        return self._struct(node, chosen, path, elsewhere)

    def _dict(self, node: Node, kind: inspect.DictType, path: str) -> Converted:
        if not isinstance(node, Mapping):
            return self._unexpected(node, kind, path)
        result: dict[str, Converted] = {}
        for key, member in node.members.items():
            below = _join(path, key)
            self.places.setdefault(below, member.place)
            name = self._scalar(Scalar(member.place, key), kind.key_type, below)
            converted = self.value(member.node, kind.value_type, below)
            if name is not WRONG and converted is not WRONG:
                result[key] = converted
        return result

    # ---- lists -----------------------------------------------------------------------------------

    def _list(self, node: Node, kind: inspect.ListType | inspect.VarTupleType, path: str) -> Converted:
        if not isinstance(node, Sequence):
            return self._unexpected(node, kind, path)
        if len(node.items) < (kind.min_length or 0):
            message = f"expected at least {kind.min_length} entries, found {len(node.items)}"
            return self.report(node.place, path, message)
        items = [self.value(item, kind.item_type, f"{path}[{at}]") for at, item in enumerate(node.items)]
        good = [item for item in items if item is not WRONG]
        return good if len(good) >= (kind.min_length or 0) else WRONG

    def _tuple(self, node: Node, kind: inspect.TupleType, path: str) -> Converted:
        if not isinstance(node, Sequence) or len(node.items) != len(kind.item_types):
            return self._unexpected(node, kind, path)
        pairs = zip(node.items, kind.item_types, strict=True)
        items = [self.value(item, each, f"{path}[{at}]") for at, (item, each) in enumerate(pairs)]
        return WRONG if any(item is WRONG for item in items) else items

    # ---- single values ---------------------------------------------------------------------------

    def _union(self, node: Node, kind: inspect.UnionType, path: str) -> Converted:
        options = [option for option in kind.types if not isinstance(option, inspect.NoneType)]
        if len(options) < len(kind.types) and isinstance(node, Scalar) and node.value is None:
            return None
        if len(options) == 1:
            return self.value(node, options[0], path)
        tagged = [option for option in options if isinstance(option, inspect.StructType)]
        if len(tagged) == len(options):
            return self._tagged(node, tagged, path)
        for option in options:
            trial = Walk(self.surroundings)
            converted = trial.value(node, option, path)
            if converted is not WRONG:
                return converted
        return self._unexpected(node, kind, path)

    def _scalar(self, node: Scalar, kind: inspect.Type, path: str) -> Converted:
        check = _SCALARS.get(type(kind))
        if isinstance(kind, inspect.CustomType) and kind.cls is Path:
            return self._path(node, kind, path)
        if check is None:
            return self._unexpected(node, kind, path)
        converted, remedy = check(node, kind)
        if converted is not WRONG:
            return converted
        what = "something else" if is_secret(_key_of(path)) else found(node)
        return self.report(node.place, path, f"expected {expected(kind)}, found {what}", remedy)

    def _path(self, node: Scalar, kind: inspect.CustomType, path: str) -> Converted:
        if not isinstance(node.value, str):
            return self._unexpected(node, kind, path)
        try:
            return self.surroundings.resolved(_key_of(path), node.value)
        except UnusablePathError as error:
            return self.report(node.place, path, str(error), error.remedy)


Checked = tuple[Converted, str]


def _integer(node: Scalar, kind: inspect.Type) -> Checked:
    assert isinstance(kind, inspect.IntType)
    value = node.value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e6
    if isinstance(value, bool) or not isinstance(value, int):
        return WRONG, _unquoted(value)
    return (value, "") if _within(value, kind) else (WRONG, "")


def _number(node: Scalar, kind: inspect.Type) -> Checked:
    assert isinstance(kind, inspect.FloatType)
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return WRONG, _unquoted(value)
    return (float(value), "") if _within(value, kind) else (WRONG, "")


def _unquoted(value: object) -> str:
    if not isinstance(value, str):
        return ""
    digits = value.strip().replace("_", "")
    if digits.lstrip("+-").replace(".", "", 1).isdecimal():
        return f"write {digits}, without quotes or `_`"
    return ""


def _within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def _boolean(node: Scalar, _kind: inspect.Type) -> Checked:
    if isinstance(node.value, bool):
        return node.value, ""
    meant = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}
    word = meant.get(str(node.value).lower())
    return WRONG, f"write `{word}`" if word else ""


def _text(node: Scalar, kind: inspect.Type) -> Checked:
    assert isinstance(kind, inspect.StrType)
    if not isinstance(node.value, str):
        return WRONG, f'put it in quotes: "{node.value}"'
    if kind.pattern is not None and _compiled(kind.pattern)(node.value) is None:
        return WRONG, ""
    return node.value, ""


def _choice(node: Scalar, kind: inspect.Type) -> Checked:
    assert isinstance(kind, inspect.LiteralType)
    words = {str(value): value for value in kind.values}
    text = str(node.value)
    if text in words and not isinstance(node.value, bool):
        return words[text], ""  # `protocol: 5` is as good as `protocol: "5"`
    near = did_you_mean(text, words)
    return WRONG, near if near.startswith("did you mean") else ""


_SCALARS: Final[dict[type[inspect.Type], Callable[[Scalar, inspect.Type], Checked]]] = {
    inspect.IntType: _integer,
    inspect.FloatType: _number,
    inspect.BoolType: _boolean,
    inspect.StrType: _text,
    inspect.LiteralType: _choice,
}


def _compiled(pattern: str) -> Callable[[str], object]:
    # `$` would let a line end pass that a topic or a file name must not have.
    return re.compile(pattern.removesuffix("$") + r"\Z").match


_STAND_INS: Final = ("unknown", "00:00", "1MB")


def stand_in_for(kind: inspect.Type) -> Converted:
    """Return some value of a type, for a required one that is missing or wrong; `WRONG` where none is at hand."""
    match kind:
        case inspect.StrType():
            fits = _compiled(kind.pattern) if kind.pattern is not None else None
            return next((text for text in _STAND_INS if fits is None or fits(text)), WRONG)
        case inspect.IntType() | inspect.FloatType():
            return next((number for number in (1, 4096, 0) if _within(number, kind)), WRONG)
        case inspect.CustomType() if kind.cls is Path:
            return "/"
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.ListType() | inspect.VarTupleType() | inspect.DictType() if not kind.min_length:
            return {} if isinstance(kind, inspect.DictType) else []
        case inspect.UnionType():
            return next((found for each in kind.types if (found := stand_in_for(each)) is not WRONG), WRONG)
        case _:
            return WRONG


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _key_of(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]
