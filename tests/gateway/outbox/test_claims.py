"""Rows that were given to a reader never change."""

from gateway.outbox.claims import Claims


def test_what_a_reader_claimed_is_not_rewritten() -> None:
    claims = Claims(existing=3)
    assert not claims.begin_rewrite(3)
    assert claims.begin_rewrite(4)
    claims.end_rewrite()
    assert claims.claim(5) == 5
    assert not claims.begin_rewrite(5)
    assert claims.begin_rewrite(6)


def test_a_reader_stops_below_what_is_being_rewritten() -> None:
    claims = Claims(existing=0)
    assert claims.begin_rewrite(7)
    assert claims.begin_rewrite(5)
    assert claims.claim(9) == 4
    claims.end_rewrite()
    assert claims.claim(9) == 9
