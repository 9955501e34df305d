import pytest
from starlette.datastructures import QueryParams

from cloud_bridge.console.query import BadQueryError, Query

ALL = ("gateway", "pipeline", "label", "class", "kind", "since", "before", "limit")


def query(text: str) -> Query:
    return Query(QueryParams(text), ALL)


def test_absent_and_empty_parameters_are_the_same() -> None:
    for text in ("", "gateway=&pipeline=&label=&class=&kind=&since=&before=&limit="):
        asked = query(text)
        assert (asked.gateway(), asked.pipeline(), asked.text("label")) == (None, None, None)
        assert (asked.record_class(), asked.kind(), asked.since_ns(), asked.before()) == (None, None, None, None)
        assert asked.limit() == 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00Z", 1_769_860_800_000_000_000),
        ("2026-01-31T13:00:00%2B01:00", 1_769_860_800_000_000_000),
        ("2026-01-31T12:00", 1_769_860_800_000_000_000),
        ("2026-01-31T12:00:00.250Z", 1_769_860_800_250_000_000),
    ],
)
def test_since_is_read_as_utc_nanoseconds(text: str, expected: int) -> None:
    assert query(f"since={text}").since_ns() == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("limit=0", "from 1 to 500"),
        ("limit=501", "from 1 to 500"),
        ("limit=-1", "from 1 to 500"),
        ("limit=1e2", "from 1 to 500"),
        ("limit=٣", "from 1 to 500"),
        ("limit=" + "9" * 5000, "from 1 to 500"),
        ("before=0", "next_before"),
        ("before=99999999999999999999", "next_before"),
        ("before=9999999999999999999", "next_before"),
        ("since=yesterday", "RFC 3339"),
        ("since=9999-12-31T23:59:59-12:00", "RFC 3339"),
        ("since=1969-01-01", "RFC 3339"),
        ("since=0001-01-01T00:00:00%2B14:00", "RFC 3339"),
        ("gateway=A", r"a-z0-9-"),
        ("pipeline=../x", "must match"),
        ("class=urgent", "critical, event, measure, bulk"),
        ("kind=x", "event, measure, evidence, eviction, notice"),
        ("label=" + "x" * 201, "200 characters"),
        ("label=%00", "printable"),
        ("offset=3", "allowed here: gateway, pipeline"),
        ("limit=3&limit=4", "more than once"),
    ],
)
def test_a_bad_parameter_is_refused_with_what_is_allowed(text: str, says: str) -> None:
    def read() -> None:
        asked = query(text)
        for get in (asked.gateway, asked.pipeline, asked.record_class, asked.kind, asked.since_ns, asked.before):
            get()
        asked.limit()
        asked.text("label")

    with pytest.raises(BadQueryError, match=says):
        read()
