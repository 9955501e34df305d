"""Documents that are read with patience, and by programs that are older than they."""

import errno
import json
import os
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from gateway.statefiles import encoded, is_passing, read_patiently, understood


class Word(msgspec.Struct, frozen=True, kw_only=True):
    about: str
    phase: Literal["waiting", "running"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    stage: Literal["wanted", "ready"] = "wanted"
    word: Word | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    part: Part | None = None
    words: tuple[Word, ...] = ()
    parts: dict[str, Part] = {}


OLD = {"about": "a", "phase": "running"}
NEW = {"about": "b", "phase": "settling"}


def test_what_is_understood_is_kept_and_the_rest_is_named() -> None:
    document = {
        "format": 2,
        "part": {"name": "n", "stage": "verifying", "more": 1},
        "words": [NEW, OLD],
        "parts": {"x": {"name": "y", "word": NEW}},
        "since": {"then": [1.5, None]},
    }
    found = understood(json.dumps(document).encode(), Document)
    assert found.value == Document(
        format=2,
        part=Part(name="n"),
        words=(Word(about="a", phase="running"),),
        parts={"x": Part(name="y")},
    )
    assert set(found.left_out) == {"part.stage", "words[0].phase", "words[0]", "parts.x.word.phase", "parts.x.word"}
    kept = json.loads(encoded(found.value, found.unknown))
    assert kept["since"] == document["since"], "what a newer program has added outlives an older one"


def test_a_document_that_is_understood_leaves_nothing_out() -> None:
    document = Document(part=Part(name="n", word=Word(about="a", phase="waiting")))
    found = understood(msgspec.json.encode(document), Document)
    assert (found.value, found.left_out, found.unknown) == (document, (), {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"format": 1', b"\xff"])
def test_what_is_no_document_is_an_error(content: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        understood(content, Document)


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EMFILE, True), (errno.EACCES, True), (errno.EIO, False), (errno.EISDIR, False)]
)
def test_errors_that_say_nothing_about_the_file_are_told_from_others(number: int, passes: bool) -> None:
    assert is_passing(OSError(number, os.strerror(number))) is passes


class Failing(type(Path())):  # type: ignore[misc]  # a path whose disk fails for a while
    failures = 0

    def open(self, *arguments: object, **more: object) -> object:
        if Failing.failures:
            Failing.failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().open(*arguments, **more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = Failing(tmp_path / "file")
    file.write_bytes(b"here")
    return file


def test_a_disk_that_fails_for_a_moment_is_asked_again(file: Path) -> None:
    Failing.failures, pauses = 3, list[float]()
    assert read_patiently(file, 100, pause=pauses.append) == b"here"
    assert sum(pauses) < 2


def test_a_disk_that_goes_on_failing_is_no_reason_to_wait_for_ever(file: Path) -> None:
    Failing.failures = 4
    with pytest.raises(OSError, match="Input/output error"):
        read_patiently(file, 100, pause=lambda _seconds: None)
