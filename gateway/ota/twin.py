"""What the bridge wants of this device, and what the device says of itself. Pure.

`twin/desired` is retained: it is handed over again at each reconnect, and whoever once recorded one can publish it
again. Only what carries at least the highest fencing token that was ever accepted counts; of two with the same token
the one with the higher version.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from gateway.ota import slots
from gateway.ota.journal import Book, Installed
from gateway.wire.messages import INT64_MAX, Assignment, ModelRef, Twin, UpdateState


@dataclass(frozen=True, slots=True)
class Ruling:
    """What became of a desired twin."""

    book: Book  # to be made durable before anything is done
    refused: str = ""  # why it does not count, in words; "" if it does
    code: str = ""
    known: bool = False  # the very one that was accepted last, handed over again
    updates: tuple[UpdateState, ...] = ()  # what is to be told at once


def judge(
    book: Book,
    twin: Twin,
    pipelines: Collection[str],
    serving: Mapping[str, ModelRef | None],
    at: str,
    *,
    most_token: int = INT64_MAX,
) -> Ruling:
    """Say what a desired twin changes.

    Args:
        book: the journal.
        twin: as it was received.
        pipelines: the names of those this device has.
        serving: the release that each runs now.
        at: now, RFC 3339.
        most_token: a higher one is not believed (`gateway.wire.tokens`).
    """
    if twin.fencing_token > most_token:
        reason = f"its fencing token {twin.fencing_token} is further ahead than any of the bridge, at most {most_token}"
        return Ruling(book, reason, "token-ahead")
    if twin.fencing_token < 0 or not 0 <= twin.version <= INT64_MAX:
        reason = f"no bridge gives the version {twin.version} under the fencing token {twin.fencing_token}"
        return Ruling(book, reason, "impossible")
    if twin.fencing_token < book.fencing_token:
        reason = f"its fencing token {twin.fencing_token} is lower than {book.fencing_token}, which was accepted"
        return Ruling(book, reason, "old-token")
    if twin.fencing_token == book.fencing_token and twin.version < book.twin_version:
        reason = f"its version {twin.version} is lower than {book.twin_version}, which was accepted"
        return Ruling(book, reason, "old-version")
    known = (twin.fencing_token, twin.version) == (book.fencing_token, book.twin_version)
    if known:
        return Ruling(book, known=True)
    following = msgspec.structs.replace(
        book, fencing_token=twin.fencing_token, twin_version=twin.version, features=dict(twin.features)
    )
    updates: list[UpdateState] = []
    for assignment in twin.assignments:
        following, update = _assign(following, twin, assignment, pipelines, serving.get(assignment.pipeline), at=at)
        if update is not None:
            updates.append(update)
            if assignment.pipeline in pipelines:
                following = slots.tell(update)(following)
    named = {assignment.pipeline for assignment in twin.assignments}
    for pipeline in (each for each in pipelines if each not in named):
        following = _let_go(following, twin, pipeline, serving.get(pipeline), at=at)
    return Ruling(following, updates=tuple(updates))


def _assign(
    book: Book,
    twin: Twin,
    assignment: Assignment,
    pipelines: Collection[str],
    now: ModelRef | None,
    *,
    at: str,
) -> tuple[Book, UpdateState | None]:
    pipeline = assignment.pipeline
    model = Installed(name=assignment.model.name, version=assignment.model.version)

    def told(phase: str, code: str = "", reason: str = "") -> UpdateState:
        return UpdateState(
            pipeline=pipeline,
            phase=msgspec.convert(phase, UpdateState.__annotations__["phase"]),
            model=assignment.model,
            running_model=now,
            fencing_token=twin.fencing_token,
            at=at,
            code=code,
            reason=reason,
        )

    if pipeline not in pipelines:
        return book, told("refused", "unknown-pipeline", f"this gateway has no pipeline {pipeline}")
    slot = book.slot(pipeline)
    gone = slots.given_up(pipeline, slot, model, at)
    if slot.active == model:  # whatever else was on its way is not wanted any more
        slot = msgspec.structs.replace(slot, token=twin.fencing_token, wanted=None)
        phase = "pinned" if slot.pinned is not None else "trial" if slot.trial is not None else "running"
        return book.with_slot(pipeline, slot, *gone), told(phase)
    if (blocked := slot.is_blocked(model)) is not None:
        # What was wanted until now is not wanted any more either.
        slot = msgspec.structs.replace(slot, wanted=None)
        return book.with_slot(pipeline, slot, *gone), told("blocked", blocked.code, blocked.reason)
    book = slots.accept(pipeline, model, twin.fencing_token, at)(book)
    if slot.pinned is not None:
        return book, told("pinned", "pinned", f"a person on the device keeps {slot.pinned.label}")
    return book, told("waiting")


def _let_go(book: Book, twin: Twin, pipeline: str, now: ModelRef | None, *, at: str) -> Book:
    """Give up what is wanted and has never served where nothing is assigned any more, as after a rollout was aborted.

    A release that is active and has to be fetched again, because it is gone from the disk, is still wanted.
    """
    slot = book.slot(pipeline)
    if slot.wanted is None or slot.wanted.model == slot.active:
        return book
    book = slots.withdraw(pipeline, at)(book)
    if now is None:
        return book
    told = UpdateState(
        pipeline=pipeline,
        phase="trial" if slot.trial is not None else "running",
        model=now,
        running_model=now,
        fencing_token=twin.fencing_token,
        at=at,
        code="withdrawn",
        reason=f"{slot.wanted.model.label} is not assigned any more",
    )
    return slots.tell(told)(book)


def reported(
    book: Book,
    serving: Mapping[str, ModelRef | None],
    at: str,
    others: Collection[UpdateState] = (),
    awaiting: Collection[str] = (),
    *,
    refused: str = "",
) -> Twin:
    """Return what the device says of itself.

    Args:
        book: the journal.
        serving: the release that each pipeline of this device runs now.
        at: now, RFC 3339.
        others: words about pipelines that this device does not have.
        awaiting: pipelines that run nothing, because no release that they may run is here.
        refused: why the desired twin that came last does not count, a code.
    """
    updates = [
        msgspec.structs.replace(
            slot.told, running_model=serving[name] or (None if name in awaiting else slot.told.running_model)
        )
        for name, slot in sorted(book.pipelines.items())
        if slot.told is not None and name in serving  # of one that was renamed there is nothing to say any more
    ]
    return Twin(
        version=book.twin_version,
        fencing_token=book.fencing_token,
        at=at,
        assignments=[Assignment(pipeline=name, model=model) for name, model in sorted(serving.items()) if model],
        features=book.features,
        updates=[*updates, *others],
        awaiting=sorted(awaiting),
        refused=refused,
    )
