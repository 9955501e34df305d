"""Who asks at the same time is answered by one question, and nobody by one that was asked before."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.vault.errors import KeyMissingError, KeyStoreError, VaultError
from gateway.vault.rounds import Rounds
from tests.simulators.waiting import wait_for


class Oracle:
    """Answers with the number of the round. Knobs: `gate`, `fails`."""

    def __init__(self) -> None:
        self.rounds: list[frozenset[str]] = []
        self.gate = threading.Event()
        self.fails: Exception | None = None
        self.asked = Rounds(self)

    def __call__(self, questions: frozenset[str]) -> Mapping[str, int | VaultError]:
        self.rounds.append(questions)
        number = len(self.rounds)
        assert self.gate.wait(10)
        if self.fails is not None:
            raise self.fails
        return {each: KeyMissingError(each) if each == "unknown" else number for each in questions}

    @property
    def waiting(self) -> int:
        gathering = self.asked._gathering
        return 0 if gathering is None else len(gathering.questions)


def in_threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def test_who_comes_while_a_round_is_held_shares_the_next_one() -> None:
    oracle = Oracle()
    with in_threads(10) as pool:
        first = pool.submit(oracle.asked.ask, "first")
        wait_for(lambda: oracle.rounds, what="the first round is held")
        others = [pool.submit(oracle.asked.ask, f"model {number}") for number in range(9)]
        wait_for(lambda: oracle.waiting == 9, what="the others wait")
        oracle.gate.set()
        assert first.result(10) == 1
        # None of them gets what was found out before it asked.
        assert {each.result(10) for each in others} == {2}
    assert [len(each) for each in oracle.rounds] == [1, 9]


def test_one_after_the_other_each_is_asked_anew() -> None:
    oracle = Oracle()
    oracle.gate.set()
    assert [oracle.asked.ask("same") for _ in range(3)] == [1, 2, 3]


def test_an_error_of_one_is_not_that_of_the_others_and_one_of_the_round_is_everybodys() -> None:
    oracle = Oracle()
    with in_threads(3) as pool:
        pool.submit(oracle.asked.ask, "first")
        wait_for(lambda: oracle.rounds, what="the first round is held")
        both = [pool.submit(oracle.asked.ask, each) for each in ("known", "unknown")]
        wait_for(lambda: oracle.waiting == 2, what="the others wait")
        oracle.gate.set()
        assert both[0].result(10) == 2
        with pytest.raises(KeyMissingError):
            both[1].result(10)

    oracle.gate.clear()
    oracle.fails = KeyStoreError("no answer")
    with in_threads(3) as pool:
        three = [pool.submit(oracle.asked.ask, each) for each in ("a", "b", "c")]
        wait_for(lambda: oracle.waiting + len(oracle.rounds[-1]) >= 3 and len(oracle.rounds) > 2, what="all have asked")
        oracle.gate.set()
        for each in three:
            with pytest.raises(KeyStoreError, match="no answer"):
                each.result(10)
    oracle.fails = None
    assert oracle.asked.ask("after") > 2


def test_without_sharing_each_would_be_asked_for_itself() -> None:
    """The control: the same threads, each with rounds of its own."""
    oracle = Oracle()
    oracle.gate.set()
    alone: list[Callable[[str], int]] = [Rounds(oracle).ask for _ in range(9)]
    with in_threads(9) as pool:
        assert len({pool.submit(ask, "model").result(10) for ask in alone}) == 9
