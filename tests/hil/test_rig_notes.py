"""What a session notes so that the next one can go on: of the same image alone."""

import os
from pathlib import Path

import pytest

from hil.rig.notes import PLACE, Notes, place


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(b"first")
    return made


def test_the_next_session_finds_the_board_its_ports_and_what_was_plugged(tmp_path: Path, image: Path) -> None:
    file = tmp_path / "main" / "kept.json"
    first = Notes(file, image)
    serial, port = first.serial, first.port("broker")
    first.keep("running", frozenset({"sensor", "camera"}))
    again = Notes(file, image)
    assert (again.serial, again.port("broker")) == (serial, port)
    assert again.states == {"running": {"camera", "sensor"}}


def test_notes_of_another_image_are_not_believed(tmp_path: Path, image: Path) -> None:
    file = tmp_path / "kept.json"
    first = Notes(file, image)
    first.keep("booted", frozenset())
    os.utime(image, ns=(1, 1))
    again = Notes(file, image)
    assert again.states == {}
    assert again.serial != first.serial


def test_a_board_that_is_flashed_keeps_nothing_but_who_it_is(tmp_path: Path, image: Path) -> None:
    notes = Notes(tmp_path / "kept.json", image)
    serial, port = notes.serial, notes.port("broker")
    notes.keep("booted", frozenset())
    notes.forget()
    again = Notes(tmp_path / "kept.json", image)
    assert (again.states, again.serial, again.port("broker")) == ({}, serial, port)


def test_nothing_is_written_where_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLACE, raising=False)
    assert place() is None
    notes = Notes(None, tmp_path / "none.raw")
    notes.keep("booted", frozenset({"stick"}))
    assert notes.states == {"booted": {"stick"}}
    assert notes.port("one") == notes.port("one") != notes.port("other")
    assert list(tmp_path.iterdir()) == []
