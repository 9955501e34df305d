"""Which of several stores takes the records of a broker."""

import msgspec
import pytest
from structlog.testing import capture_logs

from cloud_bridge.errors import ForeignStoreError
from cloud_bridge.ingest.claim import Claim, StoreClaim, Turn

OLD, YOUNG = "0000000001-aa", "0000000002-bb"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def claim_of(store: str | None, clock: Clock, *, take_over: bool = False) -> StoreClaim:
    return StoreClaim(lambda: store, f"bridge of {store}", patience_seconds=60.0, take_over=take_over, monotonic=clock)


def said(store: str, *, alive: bool = True, take_over: bool = False) -> bytes:
    return msgspec.json.encode(Claim(store=store, bridge="the other", alive=alive, take_over=take_over))


def listened(claim: StoreClaim, clock: Clock, *heard: bytes) -> StoreClaim:
    claim.connected()
    claim.granted(refused=False)
    for payload in heard:
        claim.heard(payload)
    clock.now += 1.0
    return claim


def test_alone_it_begins_once_the_broker_had_time_to_say_what_it_has() -> None:
    clock = Clock()
    claim = claim_of(YOUNG, clock)
    assert claim.turn() is Turn.WAIT
    claim.connected()
    claim.granted(refused=False)
    assert claim.turn() is Turn.WAIT
    clock.now += 1.0
    assert (claim.turn(), claim.turn()) == (Turn.BEGIN, Turn.GO_ON)
    claim.connected()  # again: it goes on at once
    assert claim.turn() is Turn.GO_ON


def test_the_younger_store_takes_nothing_while_the_older_one_is_written_to() -> None:
    clock = Clock()
    claim = listened(claim_of(YOUNG, clock), clock, said(OLD))
    with pytest.raises(ForeignStoreError, match=r"0000000001-aa, written by the other.*--take-over"):
        claim.turn()
    assert not claim.held


def test_a_session_that_goes_on_is_taken_from_at_once_and_looked_after_afterwards() -> None:
    clock = Clock()
    claim = claim_of(YOUNG, clock)
    assert claim.learn() == YOUNG
    claim.connected(resumed=True)
    assert claim.held
    claim.granted(refused=False)
    claim.heard(said(YOUNG, alive=False))  # of the will of the process before
    clock.now += 1.0
    assert (claim.turn(), claim.turn()) == (Turn.REPEAT, Turn.GO_ON)
    claim.heard(said(OLD))
    with pytest.raises(ForeignStoreError):
        claim.turn()


def test_the_older_store_does_not_let_itself_be_driven_out() -> None:
    clock = Clock()
    claim = listened(claim_of(OLD, clock), clock)
    assert claim.turn() is Turn.BEGIN
    claim.heard(said(YOUNG))
    assert (claim.turn(), claim.turn()) == (Turn.REPEAT, Turn.GO_ON)
    assert listened(claim_of(OLD, clock), clock, said(YOUNG)).turn() is Turn.BEGIN


def test_the_younger_one_yields_when_the_older_one_comes_back() -> None:
    clock = Clock()
    claim = listened(claim_of(YOUNG, clock), clock)
    assert claim.turn() is Turn.BEGIN
    claim.heard(said(OLD))
    with pytest.raises(ForeignStoreError):
        claim.turn()


def test_an_older_store_that_is_not_written_to_is_waited_for_and_then_given_up_with_a_warning() -> None:
    clock = Clock()
    claim = listened(claim_of(YOUNG, clock), clock, said(OLD, alive=False))
    with capture_logs() as logs:
        assert (claim.turn(), claim.turn()) == (Turn.WAIT, Turn.WAIT)
        claim.connected()
        claim.granted(refused=False)
        claim.heard(said(OLD, alive=False))  # a lost connection does not begin the waiting anew
        clock.now += 60.0
        assert claim.turn() is Turn.BEGIN
    assert [entry["event"] for entry in logs] == ["store_waits", "store_changed"]


def test_told_to_take_over_it_does_so_and_the_older_one_yields_to_that() -> None:
    clock = Clock()
    young = listened(claim_of(YOUNG, clock, take_over=True), clock, said(OLD))
    assert young.turn() is Turn.BEGIN
    old = listened(claim_of(OLD, clock), clock)
    assert old.turn() is Turn.BEGIN
    old.heard(young.message(alive=True))
    with pytest.raises(ForeignStoreError):
        old.turn()


def test_the_end_of_another_link_of_the_same_store_is_contradicted() -> None:
    clock = Clock()
    claim = listened(claim_of(OLD, clock), clock)
    assert claim.turn() is Turn.BEGIN
    claim.heard(said(OLD, alive=False))
    assert (claim.turn(), claim.turn()) == (Turn.REPEAT, Turn.GO_ON)


def test_without_its_store_it_waits_and_nonsense_is_passed_over() -> None:
    clock = Clock()
    assert listened(claim_of(None, clock), clock).turn() is Turn.WAIT
    assert listened(claim_of(OLD, clock), clock, b"\xff", b"{}", b"").turn() is Turn.BEGIN


def test_a_broker_that_does_not_let_it_listen_is_told_once_and_used_all_the_same() -> None:
    clock = Clock()
    claim = claim_of(OLD, clock)
    with capture_logs() as logs:
        for _ in range(2):
            claim.connected()
            claim.granted(refused=True)
            claim.turn()
    assert claim.held
    assert [entry["event"] for entry in logs] == ["store_claim_refused"]
