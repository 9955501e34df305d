"""The JSON schema of the configuration file, and its reference for people.

The comments beside the fields in `gateway/config.py` are their description, so that a field and what is said
of it cannot drift apart; they are read from the source, and are left out where there is none.
"""

import ast
import inspect
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect as types

import gateway.config
from gateway.config import DEFAULT_QUOTAS, Config, Gateway
from gateway.configload.words import PATTERNS, expected

_HEADING: Final = """\
# Configuration

<!-- Written by `gateway config reference`; a test compares. Change gateway/config.py instead. -->

One YAML file holds everything: `/etc/sluice/gateway.yaml`, or what `$SLUICE_CONFIG` or `--config` says.

```sh
gateway config example > gateway.yaml      # a file to begin with, with comments
gateway config validate gateway.yaml       # every mistake, with its place and remedy
gateway config schema > gateway.schema.json  # for the editor: JSON schema, draft 2020-12
```

* Unknown keys are errors. Scalars follow YAML 1.2: `22:00`, `on` and `no` are text; booleans are `true` and `false`.
* Relative paths start at the directory of the file.
* Secrets stand in files of their own, named by the `…_file` keys. There, `${CREDENTIALS_DIRECTORY}/name` is a
  credential that systemd hands over (`LoadCredential=`).
* Anchors (`&name`), aliases (`*name`) and `<<` work, within limits: 1 MiB, 24 levels, 50,000 values unfolded.
* Exit status of `validate`: 0 without errors (warnings are told), 1 with errors, 2 for wrong usage, 4 when the file
  cannot be read.
"""


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the configuration file."""
    (reference,), parts = msgspec.json.schema_components(
        [Config], schema_hook=_path_schema, ref_template="#/$defs/{name}"
    )
    for name, part in parts.items():
        for key, text in _comments().get(name, {}).items():
            if key in part.get("properties", {}):
                part["properties"][key] = {**part["properties"][key], "description": text}
    # msgspec shows no default that a factory makes.
    parts["Gateway"]["properties"]["state_directory"]["default"] = str(Gateway(id="any").state_directory)
    _say_patterns(parts)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sluice gateway configuration",
        **reference,
        "$defs": parts,
    }


def _path_schema(kind: type) -> dict[str, str | int]:
    if kind is Path:
        return {"type": "string", "minLength": 1, "description": "a path; relative to the configuration file"}
    # What msgspec asks a hook to raise for a type that is not its own.
    raise NotImplementedError(f"no schema for {kind}")


def _say_patterns(part: Any) -> None:
    if isinstance(part, dict):
        if isinstance(part.get("pattern"), str) and part["pattern"] in PATTERNS:
            part.setdefault("description", PATTERNS[part["pattern"]])
        for value in part.values():
            _say_patterns(value)
    elif isinstance(part, list):
        for value in part:
            _say_patterns(value)


@cache
def _comments() -> dict[str, dict[str, str]]:
    """Read the comment beside each field of the configuration types."""
    try:
        source = inspect.getsource(gateway.config)
    except OSError:
        return {}
    lines = source.splitlines()
    found: dict[str, dict[str, str]] = {}
    for part in ast.parse(source).body:
        if not isinstance(part, ast.ClassDef):
            continue
        for item in part.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                _, hash_sign, comment = lines[(item.end_lineno or item.lineno) - 1].partition("  # ")
                if hash_sign:
                    found.setdefault(part.name, {})[item.target.id] = comment.strip()
    return found


def reference() -> str:
    """Return the reference of the configuration file as Markdown."""
    parts = [_HEADING]
    told: set[type] = set()
    root = types.type_info(Config)
    assert isinstance(root, types.StructType)
    waiting: list[tuple[str, types.StructType]] = [("", root)]
    while waiting:
        path, kind = waiting.pop(0)
        if kind.cls in told:
            continue
        told.add(kind.cls)
        parts.append(_section(path, kind))
        below = [(_below(path, field), each) for field in kind.fields for each in _structs(field.type)]
        waiting[:0] = below
    return "\n".join(parts)


def _below(path: str, field: types.Field) -> str:
    kind = _without_none(field.type)
    suffix = ""
    if isinstance(kind, types.ListType | types.VarTupleType):
        suffix = "[]"
    elif isinstance(kind, types.DictType):
        suffix = ".<class>" if isinstance(kind.key_type, types.LiteralType) else ".<name>"
    return (f"{path}.{field.encode_name}" if path else field.encode_name) + suffix


def _without_none(kind: types.Type) -> types.Type:
    if isinstance(kind, types.UnionType):
        some = [option for option in kind.types if not isinstance(option, types.NoneType)]
        return some[0] if len(some) == 1 else kind
    return kind


def _structs(kind: types.Type) -> list[types.StructType]:
    match kind:
        case types.StructType():
            return [kind]
        case types.UnionType():
            return [each for option in kind.types for each in _structs(option)]
        case types.DictType():
            return _structs(kind.value_type)
        case types.ListType() | types.VarTupleType():
            return _structs(kind.item_type)
        case _:
            return []


def _section(path: str, kind: types.StructType) -> str:
    title = f"`{path}`" if path else "The whole file"
    if kind.tag is not None:
        title += f" with `{kind.tag_field}: {kind.tag}`"
    lines = [
        f"## {title}",
        "",
        inspect.getdoc(kind.cls) or "",
        "",
        "| key | takes | default | |",
        "| --- | --- | --- | --- |",
    ]
    if kind.tag is not None:
        lines.append(f"| `{kind.tag_field}` | `{kind.tag}` | *required* | |")
    notes = _comments().get(kind.cls.__name__, {})
    for field in kind.fields:
        takes = _takes(field.type).replace("|", "\\|")
        note = notes.get(field.encode_name, "").replace("|", "\\|")
        lines.append(f"| `{field.encode_name}` | {takes} | {_default(field)} | {note} |".replace("  |", " |"))
    if path == "outbox":
        lines += ["", _quota_table()]
    return "\n".join([*lines, ""])


def _takes(kind: types.Type) -> str:
    some = _structs(kind)
    match _without_none(kind):
        case types.DictType(key_type=key):
            keys = expected(key) if isinstance(key, types.LiteralType) else "names"
            return f"a table from {keys} to tables"
        case types.ListType() | types.VarTupleType() if some:
            return "a list of tables"
        case other:
            return expected(other)


def _default(field: types.Field) -> str:
    if field.required:
        return "*required*"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is not None and value == DEFAULT_QUOTAS:
        return "see below"
    if isinstance(value, msgspec.Struct):
        return "its defaults"
    if isinstance(value, Path):
        return f"`{value}`"
    if value is None:
        return ""
    return f"`{msgspec.json.encode(value, enc_hook=str).decode()}`"


def _quota_table() -> str:
    lines = [
        "What the file says of a class is laid over that class's own defaults:",
        "",
        "| class | max_bytes | max_rows | max_age_seconds | on_full |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, quota in DEFAULT_QUOTAS.items():
        age = "none" if quota.max_age_seconds is None else f"{quota.max_age_seconds:g}"
        lines.append(f"| `{name}` | {quota.max_bytes} | {quota.max_rows} | {age} | `{quota.on_full}` |")
    return "\n".join(lines)
