from collections.abc import Callable

import numpy as np
import pytest

from gateway.config import Interest, Privacy
from gateway.decide.budget import ByteBudget
from gateway.proofs import Proofs
from gateway.values import Decision, Entry, Frame, SnapshotWish
from gateway.wire.messages import Event, Evidence
from tests.simulators.samples import event

FRAME = Frame("camera", 1, 1_700_000_000_000_000_000, 5, np.full((48, 64, 3), 90, np.uint8))


class Dropped(list[str]):
    """Why pictures were not kept."""


def proofs(
    dropped: Dropped, *, may_keep: bool = True, wanted: Callable[[], bool] = lambda: True, **interest: object
) -> Proofs:
    settings = Interest(**interest)  # type: ignore[arg-type]  # of the test's own choosing
    return Proofs("camera", settings, lambda _size: may_keep, lambda: 0, dropped.append, wanted=wanted)


def entry(phase: str, revision: int = 0) -> Entry:
    return Entry("event", "event", event("e1", phase=phase, revision=revision), 1)


def decision(*, wished: bool) -> Decision:
    return Decision((entry("new"),), (SnapshotWish("v1", "e1", None),) if wished else ())


def linked_to(each: Entry) -> str | None:
    assert isinstance(each.body, Event)
    return each.body.evidence.evidence_id if each.body.evidence is not None else None


def test_a_picture_is_linked_from_every_revision_of_its_event_until_it_ends() -> None:
    made = proofs(Dropped())
    new, picture = made.with_evidence(decision(wished=True), FRAME, ByteBudget(1 << 20))
    assert isinstance(picture.body, Evidence)
    assert (picture.record_class, picture.body.event_id, linked_to(new)) == ("bulk", "e1", "v1")
    assert picture.blob[:2] == b"\xff\xd8"
    assert [linked_to(each) for each in made.linked([entry("update", 1), entry("end", 2)])] == ["v1", "v1"]
    assert [linked_to(each) for each in made.linked([entry("new")])] == [None]  # another event of that name, later


@pytest.mark.parametrize(
    ("budget", "may_keep", "reason"), [(10, True, "snapshot-budget"), (1 << 20, False, "link-budget")]
)
def test_a_picture_that_nobody_can_pay_for_is_counted_and_the_event_goes_without(
    budget: int, may_keep: bool, reason: str
) -> None:
    dropped = Dropped()
    (new,) = proofs(dropped, may_keep=may_keep).with_evidence(decision(wished=True), FRAME, ByteBudget(budget))
    assert dropped == [reason]
    assert linked_to(new) is None


def test_while_pictures_are_switched_off_none_is_made_and_the_event_goes_without() -> None:
    dropped, is_on = Dropped(), [False]
    made = proofs(dropped, wanted=lambda: is_on[0])
    (new,) = made.with_evidence(decision(wished=True), FRAME, ByteBudget(1 << 20))
    assert (linked_to(new), dropped) == (None, [])
    is_on[0] = True
    assert len(made.with_evidence(decision(wished=True), FRAME, ByteBudget(1 << 20))) == 2


def test_what_privacy_forbids_is_not_even_made() -> None:
    dropped = Dropped()
    made = proofs(dropped, privacy=Privacy(send="never"))
    assert len(made.with_evidence(decision(wished=True), FRAME, ByteBudget(1 << 20))) == 1
    assert dropped == []


def test_without_a_wish_there_is_no_picture() -> None:
    assert len(proofs(Dropped()).with_evidence(decision(wished=False), FRAME, ByteBudget(1 << 20))) == 1
