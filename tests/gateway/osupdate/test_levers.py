"""Requests to root, and what root does with them."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gateway
from gateway.osupdate.errors import LeverError
from gateway.osupdate.levers import ANSWER, REQUEST, RequestedLevers, Verb, carry_out

NOTHING = [sys.executable, "-c", ""]


def levers(directory: Path, *, rauc: list[str], restart: list[str], root: bool = True) -> RequestedLevers:
    def wait(_seconds: float) -> None:
        if root:
            try:
                carry_out(directory, rauc=rauc, restart=restart)
            except LeverError:
                return

    return RequestedLevers(directory, number=lambda: "7", answer_seconds=0.5 if not root else 20.0, wait=wait)


@pytest.mark.parametrize(
    ("verb", "said"), [("keep", "status mark-active booted"), ("return", "status mark-active other")]
)
def test_a_slot_is_chosen_by_root_alone_with_these_words_alone(tmp_path: Path, verb: Verb, said: str) -> None:
    note = tmp_path / "said"
    rauc = [sys.executable, "-c", f"import sys; open({str(note)!r}, 'w').write(' '.join(sys.argv[1:]))"]
    levers(tmp_path, rauc=rauc, restart=NOTHING).pull(verb)
    assert note.read_text() == said
    assert not (tmp_path / REQUEST).exists()


def test_a_command_that_fails_is_told_with_its_words(tmp_path: Path) -> None:
    rauc = [sys.executable, "-c", "import sys; sys.exit('no such slot')"]
    with pytest.raises(LeverError, match="no such slot"):
        levers(tmp_path, rauc=rauc, restart=NOTHING).pull("keep")


def test_nobody_who_listens_is_told_with_the_unit_to_start(tmp_path: Path) -> None:
    with pytest.raises(LeverError, match=r"sluice-os-request\.path"):
        levers(tmp_path, rauc=NOTHING, restart=NOTHING, root=False).pull("restart")
    assert not (tmp_path / REQUEST).exists(), "it is not carried out at some later time"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"verb":"format","number":"1"}', b'{"verb":"keep","number":"1","and":"more"}']
)
def test_root_does_nothing_it_does_not_know(tmp_path: Path, content: bytes) -> None:
    (tmp_path / REQUEST).write_bytes(content)
    with pytest.raises(LeverError, match="is no request"):
        carry_out(tmp_path, rauc=["false"], restart=["false"])
    assert not (tmp_path / REQUEST).exists()


def a_directory(file: Path) -> None:
    (file / "a" / "b").mkdir(parents=True)
    (file / "a" / "kept").symlink_to(file.parent / "untouched")


def a_deep_directory(file: Path) -> None:
    file.mkdir()
    descriptor = os.open(file, os.O_RDONLY)
    for _ in range(1500):  # no path is that long: each is made from within the one before
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def a_pipe(file: Path) -> None:
    os.mkfifo(file)


def a_dangling_link(file: Path) -> None:
    file.symlink_to("nowhere")


@pytest.mark.parametrize("make", [a_directory, a_deep_directory, a_pipe, a_dangling_link])
def test_what_is_no_file_is_taken_away_so_that_root_is_not_started_for_it_again(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "untouched").mkdir()
    make(run / REQUEST)
    with pytest.raises(LeverError, match="is no request"):
        carry_out(run, rauc=["false"], restart=["false"])
    assert not os.path.lexists(run / REQUEST)
    assert (run / "untouched").is_dir()
    assert [*tmp_path.iterdir()] == [run], "and nothing of it is left elsewhere"
    assert carry_out(run, rauc=["false"], restart=["false"]) is None, "nothing is asked for any more"


def test_the_unit_of_root_is_started_so_often_and_no_more() -> None:
    unit = (Path(gateway.__file__).parent / "units" / "sluice-os-request.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if line.startswith("StartLimit"))
    assert settings == {"StartLimitIntervalSec": "1min", "StartLimitBurst": "20"}


def test_root_follows_no_link_and_writes_through_none(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"verb": "restart", "number": "1"}))
    run = tmp_path / "run"
    run.mkdir()
    (run / REQUEST).symlink_to(secret)
    with pytest.raises(LeverError):
        carry_out(run, rauc=NOTHING, restart=NOTHING)
    (run / REQUEST).write_text(json.dumps({"verb": "keep", "number": "1"}))
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (run / ANSWER).symlink_to(victim)
    (run / f".{ANSWER}.part").symlink_to(victim)
    carry_out(run, rauc=NOTHING, restart=NOTHING)
    assert victim.read_text() == "untouched"
    assert not (run / ANSWER).is_symlink()
