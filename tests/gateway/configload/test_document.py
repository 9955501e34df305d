"""YAML as a tree with places, within limits."""

import pytest

from gateway.configload.document import MAX_NODES, MAX_TEXT_BYTES, Mapping, Scalar, Sequence, parse, resolved
from gateway.configload.problems import Problem


def only_problem(text: str | bytes) -> Problem:
    document = parse(text)
    assert len(document.problems) == 1, document.problems
    return document.problems[0]


def test_every_value_and_key_knows_its_place() -> None:
    root = parse("a: 1\nb:\n  - x\n  - {c: true}\n").root
    assert root is not None
    b = root.members["b"]
    assert (b.place.line, b.place.column) == (2, 1)
    assert isinstance(b.node, Sequence)
    inner = b.node.items[1]
    assert isinstance(inner, Mapping)
    assert (inner.members["c"].place.line, inner.members["c"].place.column) == (4, 6)
    assert inner.members["c"].node == Scalar(inner.members["c"].node.place, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("22:00", "22:00"),  # YAML 1.1: 1320
        ("on", "on"),
        ("no", "no"),
        ("2026-01-31", "2026-01-31"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("", None),
        ("42", 42),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("<", "<"),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = resolved(text)
    assert found == value
    assert type(found) is type(value)


def test_quoted_scalars_are_text() -> None:
    root = parse("a: \"5\"\nb: 'true'\nc: |\n  7\nd: !!str 8\n").root
    assert root is not None
    values = [member.node.value for member in root.members.values() if isinstance(member.node, Scalar)]
    assert values == ["5", "true", "7\n", "8"]


def test_all_duplicate_keys_are_reported() -> None:
    problems = parse("a: 1\nb: {x: 1, x: 2}\na: 3\n").problems
    assert [(p.line, p.column) for p in problems] == [(2, 11), (3, 1)]
    assert "already given in line 1" in problems[1].message


def test_aliases_and_merge_keys_work() -> None:
    root = parse("base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}\nlist: [*b, *b]\n").root
    assert root is not None
    use = root.members["use"].node
    assert isinstance(use, Mapping)
    assert {key: getattr(member.node, "value", None) for key, member in use.members.items()} == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "complaint", "place"),
    [
        ("", "empty", (1, 1)),
        ("# nothing\n", "empty", (1, 1)),
        ("- a\n", "expected a table", (1, 1)),
        ("a: 1\n---\nb: 2\n", "second document", (2, 1)),
        ("a: [1, 2\n", "not YAML", (2, 1)),
        ("a: 1\n\tb: 2\n", "not YAML", (2, 1)),
        ("a: *nobody\n", "no anchor", (1, 4)),
        ("a: &x [*x]\n", "inside what it names", (1, 8)),
        ("? [1, 2]\n: 3\n", "a key must be text", (1, 3)),
        ("a: .inf\n", "not a finite number", (1, 4)),
        ("a: !!python/object/apply:os.system [ls]\n", "the tag", (1, 4)),
        ("a: !env HOME\n", "the tag", (1, 4)),
        ("a: \x07\n", "not allowed", (1, 4)),
        (b"a: 1\nb: \xff\n", "not UTF-8", (2, 4)),
        ("a: " + "[" * 30 + "]" * 30, "nested deeper", (1, 27)),
        ("a: " + "[" * 100_000, "nested deeper", (1, 27)),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str | bytes, complaint: str, place: tuple[int, int]) -> None:
    problem = only_problem(text)
    assert complaint in problem.message
    assert (problem.line, problem.column) == place


def test_a_few_aliases_cannot_stand_for_a_billion_values() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert f"more than {MAX_NODES} values" in only_problem(bomb).message


def test_an_oversized_file_is_not_parsed() -> None:
    assert "bytes" in only_problem("a: " + "x" * MAX_TEXT_BYTES).message


def test_the_byte_order_mark_of_an_editor_is_ignored() -> None:
    assert parse(b"\xef\xbb\xbfa: 1\n").problems == []
