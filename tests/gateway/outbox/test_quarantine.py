"""A store that was put aside is told about once, wherever the putting aside was interrupted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import OutboxError
from gateway.outbox.damage import side
from gateway.outbox.quarantine import KEPT_ASIDE, quarantine, quarantined_name
from gateway.outbox.remains import remains_of
from gateway.outbox.store import Outbox
from gateway.wire.messages import Notice, decode
from tests.gateway.outbox.outbox_kit import event, opened, rows, settings

ROOT = Path(__file__).parents[3]
EVENTS = 500


def damaged(file: Path) -> str:
    """Make a store as a crash leaves it, most of it in the log, and one that is refused; returns its epoch."""
    outbox = Outbox.open(file.parent.with_name("original") / file.name, settings())
    outbox.put([event(n) for n in range(EVENTS)])
    shutil.copytree(outbox._file.parent, file.parent)
    outbox.close()
    side(file, "-shm").unlink()
    content = file.read_bytes()
    file.write_bytes(content[:16] + b"\0\0" + content[18:])  # the page size
    return outbox.epoch


def readable(aside: Path) -> None:
    """Mend what was damaged, so that it can be seen whether everything was put aside."""
    content = aside.read_bytes()
    aside.write_bytes(content[:16] + (4096).to_bytes(2, "big") + content[18:])


def killed_at_each_step(folder: Path, mode: str) -> list[Path]:
    """Return the stores left by openings that were killed before one step after the other, the last came to its end."""
    command = [sys.executable, str(Path(__file__).with_name("quarantine_victim.py")), str(folder), mode]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return sorted((each / "outbox.db" for each in folder.glob("[0-9]*")), key=lambda each: int(each.parent.name))


def told(outbox: Outbox) -> list[Notice]:
    found = (decode(row.body, Notice) for row in rows(outbox, "critical") if row.kind == "notice")
    return [notice for notice in found if notice.code == "store_quarantined"]


def test_a_kill_at_any_step_of_a_quarantine_loses_neither_the_notice_nor_what_was_put_aside(tmp_path: Path) -> None:
    epoch = damaged(tmp_path / "damaged" / "outbox.db")
    files = killed_at_each_step(tmp_path, "kept")
    assert len(files) > 20
    for file in files:
        with opened(file) as outbox:
            assert len(told(outbox)) == 1, file
            assert outbox.epoch != epoch
        with opened(file) as outbox:
            assert len(told(outbox)) == 1, file
            assert outbox.stats().quarantined == 0
        readable(quarantined_name(file))
        assert remains_of(quarantined_name(file)).missing == {"event": (1, EVENTS)}, file
        assert not side(quarantined_name(file), ".1").exists()
        assert not side(file, ".untold").exists()


def test_control_without_a_word_on_the_disk_kills_lose_the_notice(tmp_path: Path) -> None:
    damaged(tmp_path / "damaged" / "outbox.db")
    silent = 0
    for file in killed_at_each_step(tmp_path, "forgotten"):
        with opened(file) as outbox:
            silent += not told(outbox)
    assert silent > 0


def usurped(file: Path) -> tuple[str, str]:
    """Make a store that was written out because another took its place, and that other; returns both epochs."""
    epochs = []
    for folder, events in (("own", 5), ("other", EVENTS)):
        with opened(file.parent.with_name(folder) / file.name) as outbox:
            outbox.put([event(n) for n in range(events)])
            epochs.append(outbox.epoch)
    file.parent.mkdir(exist_ok=True)
    (file.parent.with_name("own") / file.name).rename(side(file, ".rescued"))
    (file.parent.with_name("other") / file.name).rename(file)
    own, other = epochs
    return own, other


def test_a_kill_at_any_step_of_putting_a_store_back_leaves_one_notice_of_the_one_in_its_place(tmp_path: Path) -> None:
    own, other = usurped(tmp_path / "damaged" / "outbox.db")
    files = killed_at_each_step(tmp_path, "kept")
    assert len(files) > 15
    for file in files:
        for _ in range(2):
            with opened(file) as outbox:
                (notice,) = told(outbox)
                assert outbox.epoch == own, file
                assert {row.seq for row in rows(outbox, "event")} >= set(range(1, 6)), file
        assert (notice.epoch, notice.missing) == (other, {"event": (1, EVENTS)}), file
        assert "was replaced by another store" in notice.detail
        assert "the store it stood for goes on" in notice.detail
        assert not side(file, ".untold").exists()


def test_control_without_a_word_on_the_disk_nobody_hears_of_a_store_that_was_in_the_way(tmp_path: Path) -> None:
    usurped(tmp_path / "damaged" / "outbox.db")
    silent = 0
    for file in killed_at_each_step(tmp_path, "forgotten"):
        with opened(file) as outbox:
            silent += not told(outbox)
    assert silent > 0


def test_a_store_put_back_that_is_damaged_too_tells_of_both(file: Path) -> None:
    usurped(file)
    content = side(file, ".rescued").read_bytes()
    side(file, ".rescued").write_bytes(content[:16] + b"\0\0" + content[18:])
    with opened(file) as outbox:
        (notice,) = told(outbox)
        assert "was replaced by another store" in notice.detail
        assert "which is kept too" in notice.detail
    assert side(quarantined_name(file), ".1").exists()


def test_a_new_store_that_cannot_be_made_is_made_later_with_the_notice_in_it(file: Path) -> None:
    damaged(file)
    obstacle = side(file, ".new")
    obstacle.mkdir()  # where the new store would be made
    with pytest.raises(OutboxError, match="cannot be made"):
        Outbox.open(file, settings())
    assert not file.exists()
    assert quarantined_name(file).exists()
    obstacle.rmdir()
    heard: list[Notice] = []
    outbox = Outbox.open(file, settings(), on_notice=heard.append)
    try:
        assert told(outbox) == heard
        assert len(heard) == 1
        assert "page size" in heard[0].detail
        assert outbox.stats().quarantined == outbox.stats().classes["critical"].enqueued == 1
    finally:
        outbox.close()


def test_words_that_were_cut_off_still_lead_to_a_notice(file: Path) -> None:
    damaged(file)
    quarantine(file)
    side(file, ".untold").write_bytes(b'{"rea')
    with opened(file) as outbox:
        assert len(told(outbox)) == 1


def test_damage_that_has_passed_is_forgotten(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(1)])
    side(file, ".untold").write_bytes(b'{"reason": "it could not be read", "at": "2026-09-21T14:13:20.000Z"}')
    with opened(file) as outbox:
        assert told(outbox) == []
    file.unlink()
    with opened(file) as outbox:
        assert told(outbox) == []


def test_a_free_name_is_taken_before_an_older_store_is_given_up(file: Path) -> None:
    file.parent.mkdir()
    aside = quarantined_name(file)
    names = [aside, *(side(aside, f".{age}") for age in range(1, KEPT_ASIDE))]
    for name, text in zip((names[1], names[2]), ("newer", "older"), strict=True):
        name.write_text(text)  # the first name is free, as after a kill in the middle of the renaming
    file.write_text("newest")
    quarantine(file)
    assert [name.read_text() for name in names] == ["newest", "newer", "older"]
