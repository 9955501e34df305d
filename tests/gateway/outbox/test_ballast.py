"""The reserve on disk."""

from pathlib import Path

from structlog.testing import capture_logs

from gateway.outbox.ballast import Ballast
from gateway.outbox.damage import side
from tests.gateway.outbox.outbox_kit import opened, settings, until

SIZE = 1 << 20


def test_the_reserve_is_made_of_real_blocks_and_given_back(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "outbox.db", SIZE)
    assert not ballast.present
    assert ballast.restore()
    assert ballast.present
    assert (tmp_path / "outbox.db.ballast").stat().st_blocks * 512 >= SIZE
    assert ballast.release()
    assert not ballast.release()
    assert list(tmp_path.iterdir()) == []


def test_no_reserve_is_made_where_the_disk_has_no_room_for_it(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "outbox.db", 1 << 60)
    assert not ballast.restore()
    assert list(tmp_path.iterdir()) == []


def test_a_reserve_that_is_not_wished_is_never_missing(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "outbox.db", 0)
    assert ballast.present
    assert ballast.restore()
    assert not ballast.release()


def test_a_reserve_cut_short_is_made_again(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "outbox.db", SIZE)
    (tmp_path / "outbox.db.ballast").write_bytes(b"half")
    assert not ballast.present
    assert ballast.restore()
    assert ballast.present


def test_the_reserve_is_given_back_in_pieces(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "outbox.db", SIZE)
    ballast.restore()
    left: list[int] = []
    while ballast.give():
        left.append(sum(name.stat().st_size for name in tmp_path.iterdir()))
    assert left == [SIZE * 3 // 4, SIZE // 2, SIZE // 4, 0]
    assert list(tmp_path.iterdir()) == []


def test_the_reserve_becomes_another_file_without_a_block_changing_hands(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "outbox.db", SIZE)
    ballast.restore()
    inode = (tmp_path / "outbox.db.ballast").stat().st_ino
    assert ballast.become(tmp_path / "other")
    assert (tmp_path / "other").stat().st_ino == inode
    assert not ballast.become(tmp_path / "other")


def test_a_reserve_with_something_in_it_never_becomes_another_file(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "outbox.db", SIZE)
    ballast.restore()
    with (tmp_path / "outbox.db.ballast").open("r+b") as stream:
        stream.write(b"a log, perhaps")
    assert not ballast.become(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_directory_in_its_place_is_no_reserve_and_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "outbox.db.ballast").mkdir()
    ballast = Ballast(tmp_path / "outbox.db", SIZE)
    assert not ballast.present
    assert not ballast.restore()
    assert not ballast.give()
    assert not ballast.become(tmp_path / "other")


def test_a_reserve_that_cannot_be_made_is_told_once_and_so_is_its_end(file: Path) -> None:
    file.parent.mkdir()
    obstacle = side(file, ".ballast")
    obstacle.mkdir()
    with capture_logs() as logs, opened(file, settings(ballast_bytes=SIZE)) as outbox:

        def told() -> list[str]:
            return [each["event"] for each in logs if each["event"].startswith("ballast_")]

        until(told)
        obstacle.rmdir()
        until(lambda: outbox.stats().ballast)
        until(lambda: len(told()) > 1)
        assert told() == ["ballast_not_made", "ballast_made"]


def test_control_a_reserve_that_is_made_at_once_is_no_news(file: Path) -> None:
    with capture_logs() as logs, opened(file, settings(ballast_bytes=SIZE)) as outbox:
        until(lambda: outbox.stats().ballast)
    assert not [each for each in logs if each["event"].startswith("ballast_")]
