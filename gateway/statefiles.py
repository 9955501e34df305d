"""Documents below the state directory: read with patience, and by programs that may be older than whoever wrote them.

The two systems of an appliance share that directory. After falling back, the old one finds what the new one has
written; what it does not understand there is no damage.
"""

import errno
import time
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from gateway.owner import words_for_a_stranger

S = TypeVar("S", bound=msgspec.Struct)

_PASSING: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EINTR, errno.EAGAIN}
)
_PAUSES_SECONDS: Final = (0.25, 0.5, 1.0)
"""Between tries to read what the disk does not give: a bus that is reset, a medium that wakes up."""
_LEFT_OUT: Final = object()


def is_passing(error: BaseException | None) -> bool:
    """Tell whether an error is one of the process, the machine or the owner, and says nothing about the file.

    Nothing is put aside for these: the file is whole, and is read when there is room again or its owner is right.
    """
    return isinstance(error, OSError) and error.errno in _PASSING


def words_of(file: Path, error: BaseException) -> str:
    """Say why a file cannot be read now, and what helps."""
    if isinstance(error, PermissionError):
        if words := words_for_a_stranger(file):
            return words
        return f"{file} belongs to another user; give it to the gateway's: chown --reference={file.parent} {file}"
    return f"{file} cannot be read now: {error.strerror if isinstance(error, OSError) else error}"


def read_patiently(file: Path, max_bytes: int, *, pause: Callable[[float], object] = time.sleep) -> bytes:
    """Read a small file; a disk that fails is asked again for two seconds.

    Raises:
        OSError: it cannot be read; `is_passing` says whether that is the file's fault.
    """
    for seconds in _PAUSES_SECONDS:
        try:
            return _read(file, max_bytes)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            pause(seconds)
    return _read(file, max_bytes)


def _read(file: Path, max_bytes: int) -> bytes:
    with file.open("rb") as source:
        return source.read(max_bytes)


@dataclass(frozen=True, slots=True)
class Understood(Generic[S]):
    """What is understood of a document."""

    value: S
    left_out: tuple[str, ...]  # places whose values are not understood, as in `job.stage`; defaults stand there
    unknown: Mapping[str, msgspec.Raw]  # fields of the outermost object that this program does not know


def understood(content: bytes, kind: type[S]) -> Understood[S]:
    """Decode a JSON document as far as this program understands it.

    A field whose value is not of its type has its default instead, an entry of a list or a table is left out. What has
    no default takes along what it is part of, but never the document.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is no JSON, no object, or lacks what it must have.
    """
    unknown = _unknown(content, kind)
    try:
        return Understood(msgspec.json.decode(content, type=kind), (), unknown)
    except msgspec.ValidationError:
        left_out: list[str] = []
        value = _struct(msgspec.json.decode(content), kind, "", left_out)
        return Understood(value, tuple(left_out), unknown)


def _unknown(content: bytes, kind: type[S]) -> dict[str, msgspec.Raw]:
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    return {name: msgspec.Raw(bytes(raw)) for name, raw in fields.items() if name not in known}


def encoded(value: msgspec.Struct, unknown: Mapping[str, msgspec.Raw]) -> bytes:
    """Encode a document together with the fields that `understood` did not know."""
    fields = msgspec.json.decode(msgspec.json.encode(value), type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, **unknown})


def _struct(tree: Any, kind: type[S], place: str, left_out: list[str]) -> S:
    if not isinstance(tree, dict):
        raise msgspec.ValidationError(f"expected an object - at `{place or '$'}`")
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in tree:
            continue
        where = f"{place}.{field.encode_name}" if place else field.encode_name
        value = _value(tree[field.encode_name], field.type, where, left_out)
        if value is not _LEFT_OUT:
            values[field.name] = value
        elif field.required:
            raise msgspec.ValidationError(f"what must be there is not understood - at `{where}`")
    try:
        return kind(**values)
    except TypeError as error:  # a field that must be there is not
        raise msgspec.ValidationError(f"{error} - at `{place or '$'}`") from error


def _value(tree: Any, kind: Any, place: str, left_out: list[str]) -> Any:
    """Convert a value; `_LEFT_OUT`, and its place in `left_out`, where that cannot be done."""
    parts = [part for part in _parts(kind) if part is not type(None)]
    try:
        if tree is not None and len(parts) == 1:
            inner, origin, arguments = parts[0], typing.get_origin(parts[0]), typing.get_args(parts[0])
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                return _struct(tree, inner, place, left_out)
            if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis and isinstance(tree, list):
                found = [_value(each, arguments[0], f"{place}[{at}]", left_out) for at, each in enumerate(tree)]
                return tuple(each for each in found if each is not _LEFT_OUT)
            if origin is dict and isinstance(tree, dict):
                entries = {key: _value(each, arguments[1], f"{place}.{key}", left_out) for key, each in tree.items()}
                return {key: each for key, each in entries.items() if each is not _LEFT_OUT}
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError:
        left_out.append(place)
        return _LEFT_OUT


def _parts(kind: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )
