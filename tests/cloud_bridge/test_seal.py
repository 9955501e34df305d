"""A copy of an export that was cut short or changed is noticed."""

import io

import pytest

from cloud_bridge.seal import Seal
from cloud_bridge.transfer import chunks, read_lines
from gateway.outbox.export import NdjsonFile, export
from gateway.outbox.inspect import Chunk
from gateway.values import Stored
from tests.simulators.samples import EPOCH

ROWS = 1200


def exported(rows: int = ROWS, gateway: str = "dock") -> bytes:
    """What a gateway writes on a stick."""
    stored = [
        Stored(seq, "notice", seq, b'{"code":"x","severity":"info","detail":"","at":""}') for seq in range(1, rows + 1)
    ]
    out = io.BytesIO()
    export([Chunk(EPOCH, "event", stored)], NdjsonFile(out, gateway, "2026-11-21T12:00:00.000Z"))
    return out.getvalue()


def brought_in(content: bytes) -> tuple[int, list[str]]:
    """Read a file as `import` does; return how many records came and what was wrong."""
    seal, count = Seal(), 0
    bad: list[str] = []
    first = 1
    for lines in chunks(io.BytesIO(content)):
        chunk = read_lines(seal.checked(lines), None, first_line=first)
        first += len(lines)
        count += sum(len(arrival.rows) for arrival in chunk.arrivals)
        bad += chunk.bad
    return count, [*bad, *seal.finish()]


def test_a_whole_file_has_no_problems() -> None:
    assert brought_in(exported()) == (ROWS, [])


@pytest.mark.parametrize("lines", [1, 2, 500, 501, 502, ROWS, ROWS + 1])
def test_a_cut_between_two_lines_is_noticed_and_what_came_is_used(lines: int) -> None:
    content = b"".join(exported().splitlines(keepends=True)[:lines])
    count, problems = brought_in(content)
    assert count == lines - 1
    assert len(problems) == 1
    assert f"line {lines}: the file ends before its end mark" in problems[0]


def test_a_cut_within_a_line_names_the_line_too() -> None:
    content = exported()
    count, problems = brought_in(content[: len(content) // 2])
    assert 0 < count < ROWS
    assert len(problems) == 2


def test_without_the_first_line_the_same_cut_would_not_be_noticed() -> None:
    """The control: it is the announcement that gives the cut away."""
    lines = exported().splitlines(keepends=True)
    assert brought_in(b"".join(lines[1:100])) == (99, [])


def test_a_line_that_is_missing_in_the_middle_is_noticed() -> None:
    lines = exported().splitlines(keepends=True)
    count, problems = brought_in(b"".join([*lines[:50], *lines[51:]]))
    assert count == ROWS - 1
    assert "written with 1200 records and has 1199" in problems[0]


def test_a_changed_byte_is_noticed() -> None:
    count, problems = brought_in(exported().replace(b'"code":"x"', b'"code":"y"', 1))
    assert count == ROWS
    assert "checksum" in problems[0]


def test_files_may_follow_each_other() -> None:
    assert brought_in(exported(3) + exported(4, "gate")) == (7, [])
    count, problems = brought_in(exported(3).rpartition(b'{"sluice":"end"')[0] + exported(4, "gate"))
    assert count == 7
    assert len(problems) == 1


def test_lines_of_other_origin_are_taken_as_they_are() -> None:
    lines = exported(3).splitlines(keepends=True)[1:4]
    assert brought_in(b"".join(lines)) == (3, [])


def test_what_only_looks_like_a_mark_is_a_bad_line() -> None:
    _, problems = brought_in(b'{"sluice":"joke"}\n{"sluice":\n')
    assert [problem.partition(":")[0] for problem in problems] == ["line 1", "line 2"]
