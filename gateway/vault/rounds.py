"""One question for all who wait for its answer: the TPM is asked once for models that are opened at the same time.

An answer is never older than the question. Who asks while a round is being held waits for the next one, so a machine
whose state has changed meanwhile is refused as it would be alone.
"""

import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gateway.vault.errors import VaultError

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Round(Generic[Question, Answer]):
    questions: set[Question] = field(default_factory=set)
    answers: "Future[Mapping[Question, Answer | VaultError]]" = field(default_factory=Future)


class Rounds(Generic[Question, Answer]):
    """Gathers questions of several threads. The thread that asks first holds the round for all."""

    def __init__(self, answer_all: Callable[[frozenset[Question]], Mapping[Question, Answer | VaultError]]) -> None:
        """Take what answers. One round is held at a time; what it raises, all of the round get."""
        self._answer_all = answer_all
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._gathering: _Round[Question, Answer] | None = None

    def ask(self, question: Question) -> Answer:
        """Wait for the answer of a round that begins after this call.

        Raises:
            VaultError: the answer is an error.
        """
        with self._lock:
            leads = self._gathering is None
            mine = self._gathering = self._gathering or _Round()
            mine.questions.add(question)
        if leads:
            with self._turn:
                self._hold(mine)
        answer = mine.answers.result()[question]
        if isinstance(answer, VaultError):
            raise answer
        return answer

    def _hold(self, mine: _Round[Question, Answer]) -> None:
        with self._lock:
            self._gathering = None  # whoever comes from now on gets a later answer
        try:
            mine.answers.set_result(self._answer_all(frozenset(mine.questions)))
        except BaseException as error:
            mine.answers.set_exception(error)
            raise
