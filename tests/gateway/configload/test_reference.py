"""Schema and reference are made of the types, and are up to date."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from msgspec import inspect

from gateway.config import Config
from gateway.configload import check, reference, schema
from gateway.configload.words import PATTERNS, expected

ROOT = Path(__file__).parents[3]


def test_the_reference_in_the_documentation_is_up_to_date() -> None:
    """`gateway config reference > docs/configuration.md` writes it anew."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def test_the_example_follows_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(_quoted_times()))


def _quoted_times() -> str:
    # PyYAML speaks YAML 1.1, where 22:00 is a number.
    text = (ROOT / "gateway" / "example.yaml").read_text()
    return text.replace("start: 22:00, end: 06:00", "start: '22:00', end: '06:00'")


@pytest.mark.parametrize("document", [{}, {"gateway": {"id": "Dock"}, "sources": {}, "pipelines": {}}])
def test_the_schema_refuses_what_validation_refuses(document: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(schema()).is_valid(document)
    assert check(yaml.safe_dump(document))


def test_the_schema_is_plain_json_with_descriptions() -> None:
    found = json.loads(json.dumps(schema()))
    gateway = found["$defs"]["Gateway"]["properties"]
    assert gateway["id"]["description"].startswith("lower-case letters")
    assert gateway["state_directory"]["default"] == "/var/lib/sluice"
    assert "other" not in found["$defs"]["Broker"]
    assert found["$defs"]["Broker"]["additionalProperties"] is False


def test_every_pattern_and_every_type_has_words() -> None:
    for kind in _kinds(inspect.type_info(Config), set()):
        assert expected(kind)
        if isinstance(kind, inspect.StrType) and kind.pattern is not None:
            assert kind.pattern in PATTERNS


def _kinds(kind: inspect.Type, seen: set[type]) -> list[inspect.Type]:
    match kind:
        case inspect.StructType():
            if kind.cls in seen:
                return []
            seen.add(kind.cls)
            return [kind, *(each for field in kind.fields for each in _kinds(field.type, seen))]
        case inspect.UnionType():
            return [kind, *(each for option in kind.types for each in _kinds(option, seen))]
        case inspect.DictType():
            return [kind, *_kinds(kind.key_type, seen), *_kinds(kind.value_type, seen)]
        case inspect.ListType() | inspect.VarTupleType():
            return [kind, *_kinds(kind.item_type, seen)]
        case inspect.TupleType():
            return [kind, *(each for item in kind.item_types for each in _kinds(item, seen))]
        case _:
            return [kind]
