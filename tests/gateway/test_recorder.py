"""The recorder: what the daemon may believe of the outbox."""

from dataclasses import dataclass
from typing import Any, cast

from gateway.outbox.store import Outbox
from gateway.recorder import Recorder


@dataclass
class Figures:
    """What the recorder looks at of the figures of an outbox."""

    queued_entries: int
    rows: int

    @property
    def classes(self) -> dict[str, Any]:
        return {"event": self}


class TellingOutbox:
    """Answers with one set of figures after the other."""

    def __init__(self, *figures: Figures) -> None:
        self._figures = list(figures)

    def stats(self) -> Figures:
        return self._figures.pop(0) if len(self._figures) > 1 else self._figures[0]


def is_empty(*figures: Figures) -> bool:
    return Recorder(cast(Outbox, TellingOutbox(*figures))).empty


def test_an_outbox_is_empty_without_rows_and_without_a_queue() -> None:
    assert is_empty(Figures(0, 0))
    assert not is_empty(Figures(1, 0))
    assert not is_empty(Figures(0, 1))


def test_figures_taken_while_the_last_entry_is_committed_do_not_look_empty() -> None:
    assert not is_empty(Figures(queued_entries=0, rows=0), Figures(queued_entries=0, rows=1))
