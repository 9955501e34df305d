"""The reserve on disk."""

from pathlib import Path

from gateway.outbox.ballast import Ballast

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
