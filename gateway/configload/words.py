"""Types and values of the configuration in words for people."""

import re
from typing import Final

from msgspec import inspect

from gateway.configload.document import Mapping, Node, Scalar, Sequence
from gateway.shown import shown

_NAME: Final = "lower-case letters, digits, `-` and `_`, beginning with a letter or a digit, at most 63 characters"

PATTERNS: Final = {
    "^[a-z0-9][a-z0-9_-]{0,62}$": _NAME,
    "^[a-z0-9-]{1,63}$": "lower-case letters, digits and `-`, at most 63 characters",
    "^[A-Za-z0-9_-]{1,64}$": "letters, digits, `-` and `_`, at most 64 characters",
    r"^[0-9]+(\.[0-9]+)? ?(B|kB|KB|MB|GB|KiB|MiB|GiB)$": "a size such as 500kB, 50MB or 64MiB",
    "^([01][0-9]|2[0-3]):[0-5][0-9]$": "a time of day from 00:00 to 23:59, such as 07:30",
    "^[0-9a-fA-F]{64}$": "64 hexadecimal digits, a SHA-256",
}
"""What each pattern of the configuration types means."""

_LEVELS: Final = (
    "`tpm` seals the key of the model weights in this machine's TPM, given out for approved boot states only; "
    "`software` keeps it in a file beside what it protects, for development"
)

MISSING: Final = {
    "vault": f"add `vault: {{level: tpm, policy_key_file: …}}` or `vault: {{level: software}}`: {_LEVELS}",
    "vault.level": f"choose one, nothing is assumed: {_LEVELS}",
}
"""The remedy for required keys that need more words than their type says."""

_SECRET_KEY: Final = re.compile(r"(pass(word|wd|phrase)?|secret|token|api_?key|private_?key|pin|credentials?)$", re.I)
_MAX_SHOWN: Final = 48


def is_secret(key: str) -> bool:
    """Tell whether a key of this name would hold a secret."""
    return _SECRET_KEY.search(key) is not None


def expected(kind: inspect.Type) -> str:
    """Say what a type takes: `a whole number from 1 to 60`."""
    match kind:
        case inspect.IntType():
            return f"a whole number{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.StrType():
            return PATTERNS.get(kind.pattern or "", f"text that matches {kind.pattern}") if kind.pattern else "text"
        case inspect.LiteralType():
            values = [f"`{value}`" for value in kind.values]
            return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
        case inspect.CustomType():
            return "a path"
        case inspect.ListType() | inspect.VarTupleType() | inspect.TupleType():
            return _expected_list(kind)
        case inspect.UnionType():
            some = [option for option in kind.types if not isinstance(option, inspect.NoneType)]
            if all(isinstance(option, inspect.StructType) for option in some):
                return "a table"
            return " or ".join(expected(option) for option in some)
        case _:
            return "a table"


def _expected_list(kind: inspect.ListType | inspect.VarTupleType | inspect.TupleType) -> str:
    if isinstance(kind, inspect.TupleType):
        first = kind.item_types[0]
        return f"a list of {len(kind.item_types)}, each {expected(first)}"
    if isinstance(kind.item_type, inspect.StructType):
        return "a list of tables"
    return f"a list, each {expected(kind.item_type)}"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f"from {kind.ge:g}" if kind.ge is not None else f"above {kind.gt:g}" if kind.gt is not None else ""
    high = f"to {_exact(kind.le)}" if kind.le is not None else f"below {kind.lt:g}" if kind.lt is not None else ""
    if low and not high and kind.ge is not None:
        return f", {_exact(kind.ge)} or more"
    if kind.gt is not None and kind.le is not None:
        return f" {low}, at most {_exact(kind.le)}"
    return f" {low} {high}".rstrip()


def _exact(bound: float | None) -> str:
    return str(int(bound)) if bound is not None and float(bound).is_integer() else f"{bound:g}"


def found(node: Node) -> str:
    """Say what stands there instead, without giving a secret away."""
    match node:
        case Mapping():
            return "a table"
        case Sequence():
            return "a list"
        case Scalar(value=None):
            return "nothing"
        case Scalar(value=bool() as value):
            return f"`{str(value).lower()}`"
        case Scalar(value=str() as text):
            told = shown(text)
            return f'the text "{told[:_MAX_SHOWN]}…"' if len(told) > _MAX_SHOWN else f'the text "{told}"'
        case Scalar(value=value):
            told = str(value)
            return f"the number {told[:_MAX_SHOWN]}…" if len(told) > _MAX_SHOWN else f"the number {told}"
