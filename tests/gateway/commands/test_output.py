"""What commands print for people."""

import json
import unicodedata

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.output import coloured, duration, formatted, print_json, print_table, say, say_line, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0.2, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (22_800, "6 h 20 min"), (90_061, "1 d 1 h")],
)
def test_durations_are_told_in_two_units(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 * 2**20, "64.0 MiB"), (2**41, "2048.0 GiB")],
)
def test_sizes_are_told_in_binary_units(count: int, words: str) -> None:
    assert size(count) == words


NASTY = "\x1b[31mred\x9b2J\u2028\x85\r\n\x7fend"


def acting(text: str) -> set[str]:
    """Return the characters of a text that act on a terminal."""
    return {each for each in text if unicodedata.category(each) == "Cc" or "\u2028" <= each <= "\u202e"} - {"\n", "\t"}


@click.command()
def show() -> None:
    """Print what others have written, in each way."""
    print_json({"topic": NASTY})
    print_table(["NAME", "STATE"], [[NASTY, coloured("ok".ljust(6))]])
    say(f"{coloured('failed')}: {NASTY}", nl=True)


def test_what_others_have_written_does_nothing_to_a_terminal_and_our_own_colours_stay() -> None:
    shown = CliRunner().invoke(show, color=True).stdout_bytes.decode()
    ours = ("\x1b[32mok    \x1b[0m", "\x1b[31mfailed\x1b[0m")
    for verdict in ours:
        assert verdict in shown
        shown = shown.replace(verdict, "")
    assert not acting(shown)
    assert "\\x1b[31mred\\x9b2J\\u2028\\x85\\x0d" in shown


def test_a_cell_with_a_line_end_stays_in_its_row() -> None:
    shown = CliRunner().invoke(show, color=True).stdout_bytes.decode()
    (row,) = [line for line in shown.split("\n") if line.endswith("\x1b[0m")]
    assert row.startswith("\\x1b[31mred")
    assert "\\n" in row


@given(st.binary(max_size=60))
def test_random_bytes_in_json_are_on_their_line(payload: bytes) -> None:
    text = payload.decode("utf-8", "backslashreplace")
    shown = formatted({"payload": text}).decode()
    assert len(shown.splitlines()) == 3
    assert json.loads(shown) == {"payload": text}
    assert not acting(shown)


def test_a_line_stays_one_line_whatever_was_put_into_it() -> None:
    @click.command()
    def tell() -> None:
        say_line(f"{coloured('failed')}: motor: {NASTY}")

    shown = CliRunner().invoke(tell, color=True).stdout_bytes.decode()
    assert shown.count("\n") == 1
    assert shown.startswith("\x1b[31mfailed\x1b[0m: motor: \\x1b[31mred")
