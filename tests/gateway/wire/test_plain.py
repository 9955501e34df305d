import json
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.plain import exact_json, in_figures, plain, plain_json, plain_lines, so_many

ACTING = "\x7f\x80\x85\x9b\x9d\x9f\u2028\u2029\u202a\u202e\u2066\u2069"
STRINGS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(ACTING + '\\"u0\n\t')))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_plain_json_means_the_same_is_one_line_and_does_nothing_to_a_terminal(value: object) -> None:
    shown = plain_json(msgspec.json.encode(value))
    assert json.loads(shown) == json.loads(msgspec.json.encode(value))
    text = shown.decode()
    assert len(text.splitlines()) == 1
    assert not any(unicodedata.category(each) == "Cc" for each in text)
    assert not set(ACTING) & set(text)


@given(VALUES)
def test_what_was_escaped_comes_back_byte_for_byte(value: object) -> None:
    data = msgspec.json.encode(value)
    assert exact_json(plain_json(data)) == data


def test_the_control_plain_encoding_leaves_what_breaks_lines_and_drives_terminals() -> None:
    text = msgspec.json.encode("a\x85b\x9b2Jc\u2028d").decode()
    assert len(text.splitlines()) == 3
    assert "\x9b" in text


@pytest.mark.parametrize("data", [rb'"\\u009b"', rb'"\\\\u2028"', rb'"\u00e9\n\\"'])
def test_escapes_that_are_not_ours_stay(data: bytes) -> None:
    assert exact_json(data) == data
    assert plain_json(data) == data


@given(st.text(st.characters(), max_size=50))
def test_plain_text_is_one_line_and_does_nothing_to_a_terminal(text: str) -> None:
    shown = plain(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(each) in ("Cc", "Cs") for each in shown.replace("\t", ""))
    shown.encode()
    assert len(plain_lines(f"{text}\nend").splitlines()) == text.count("\n") + 2


@given(st.binary(max_size=80))
def test_random_bytes_are_shown_in_one_line(payload: bytes) -> None:
    assert len(plain(payload.decode("utf-8", "backslashreplace")).splitlines()) <= 1
    assert len(plain(payload.decode("latin-1")).splitlines()) <= 1


def test_an_escape_shows_which_character_it_was() -> None:
    assert plain("\x1b[2J\n\x9b\u2028\udc80ü\t") == "\\x1b[2J\\n\\x9b\\u2028\\udc80ü\t"
    assert plain_lines("a\x1b\nb\x85") == "a\\x1b\nb\\x85"


@pytest.mark.parametrize(("number", "words"), [(0, "0 errors"), (1, "1 error"), (2, "2 errors")])
def test_a_count_of_one_has_a_noun_in_the_singular(number: int, words: str) -> None:
    assert so_many(number, "error") == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5177.0, "5180"),
        (123_456.0, "123000"),
        (0.012345, "0.0123"),
        (-42.0, "-42"),
        (0.0, "0"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_a_figure_is_read_without_counting_powers_of_ten(value: float, text: str) -> None:
    assert in_figures(value) == text
