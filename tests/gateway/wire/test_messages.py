"""The contract as it is frozen: samples, schemas, and what a hostile peer may send."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import (
    BODIES,
    CLASSES,
    MESSAGES,
    Ack,
    Availability,
    Event,
    RecordBatch,
    decode,
    encode,
    json_schema,
)

SAMPLES = Path(__file__).parents[3] / "gateway" / "wire" / "samples"
SCHEMAS = Path(__file__).parent / "schemas"
NAMES = sorted(MESSAGES)


def sample(name: str) -> bytes:
    return (SAMPLES / f"{name}.json").read_bytes()


def test_there_is_one_sample_and_one_frozen_schema_for_each_message() -> None:
    assert sorted(file.stem for file in SAMPLES.glob("*")) == NAMES
    assert sorted(file.name.removesuffix(".schema.json") for file in SCHEMAS.glob("*")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_survives_decoding_and_encoding(name: str) -> None:
    message = decode(sample(name), MESSAGES[name])
    assert json.loads(encode(message)) == json.loads(sample(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_follows_its_schema(name: str) -> None:
    schema = json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(sample(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_is_the_frozen_one(name: str) -> None:
    """A change of the contract must show: `gateway schema --out tests/gateway/wire/schemas` freezes it anew."""
    assert json.loads(json.dumps(json_schema(name))) == json.loads((SCHEMAS / f"{name}.schema.json").read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_a_field_of_a_newer_peer_is_ignored(name: str) -> None:
    newer = json.loads(sample(name)) | {"field_of_version_2": {"deep": [1, 2]}}
    older = decode(json.dumps(newer).encode(), MESSAGES[name])
    assert json.loads(encode(older)) == json.loads(sample(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_required_field_is_really_required(name: str) -> None:
    document = json.loads(sample(name))
    required: list[str] = _definition(name)["required"]
    assert required
    for key in required:
        lacking = {other: value for other, value in document.items() if other != key}
        with pytest.raises(MalformedMessageError, match=key):
            decode(json.dumps(lacking).encode(), MESSAGES[name])


def _definition(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json_schema(name)
    definition: dict[str, Any] = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return definition


def test_the_records_of_the_sample_have_bodies_of_the_kind_they_say() -> None:
    batch = decode(sample("records"), RecordBatch)
    for record in batch.records:
        decode(bytes(record.body), BODIES[record.kind])


def test_classes_are_in_order_of_urgency() -> None:
    assert CLASSES == ("critical", "event", "measure", "bulk")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"state":"online","at":"\xff\xfe"}',
        b'{"state":"onl\xc3","at":""}',
        b'{"state":"asleep","at":""}',
        b'{"state":"online","at":5}',
        b"[" * 200_000,
        b'{"state":' * 100_000,
        b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b',"state":"online","at":""}',
        b"\x00" * 64,
        "\ufeff{}".encode(),
    ],
)
def test_hostile_payloads_are_malformed_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode(payload, Availability)


@pytest.mark.parametrize("mark", ["-1", "9223372036854775808", "1" + "0" * 300, "1e400", "1.5", '"7"', "NaN"])
def test_a_mark_that_no_database_holds_is_malformed(mark: str) -> None:
    payload = f'{{"epoch":"9f86d081884c7d65","mark":{mark},"at":""}}'.encode()
    with pytest.raises(MalformedMessageError):
        decode(payload, Ack)


def test_the_largest_mark_is_accepted() -> None:
    payload = b'{"epoch":"9f86d081884c7d65","mark":9223372036854775807,"at":""}'
    assert decode(payload, Ack).mark == 2**63 - 1


@pytest.mark.parametrize("epoch", ["9F86D081884C7D65", "9f86d081884c7d6", "9f86d081884c7d65\\n", ""])
def test_an_epoch_is_sixteen_hexadecimal_digits(epoch: str) -> None:
    with pytest.raises(MalformedMessageError):
        decode(f'{{"epoch":"{epoch}","mark":1,"at":""}}'.encode(), Ack)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_else(payload: bytes) -> None:
    for kind in MESSAGES.values():
        try:
            decode(payload, kind)
        except MalformedMessageError:
            continue


@given(score=st.floats(0, 1), count=st.integers(1, 2**53), label=st.text(max_size=50))
def test_events_round_trip(score: float, count: int, label: str) -> None:
    event = msgspec.structs.replace(decode(sample("event"), Event), score=score, count=count, label=label)
    again = decode(encode(event), Event)
    assert again == event
    assert math.isclose(again.score, score, abs_tol=0)
