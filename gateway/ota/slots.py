"""What each pipeline is to run, and how that changes: steps from one document of the journal to the next. Pure.

Which release a pipeline runs, the strongest first: what a person on the device has pinned, what an assignment of the
bridge has made active, what the configuration names. `model: name` of the configuration means the newest release that
did not come over the air, was not given up and is not still to be tried: a release that was taken back must not return
as "the newest". Where no other is left, the newest from the air that has proved itself and is not blocked runs: a
pipeline that stands still helps nobody.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from gateway.ota.journal import Blocked, Book, Event, Installed, OnTrial, Reference, Slot, Wanted
from gateway.wire.messages import ModelRef, UpdateState

Step = Callable[[Book], Book]

MAX_BLOCKED = 64


def running(slot: Slot) -> Installed | None:
    """Return what a pipeline is to run, None for what its configuration names."""
    return slot.pinned or slot.active


def model_for(book: Book, pipeline: str, configured: str, there: Iterable[tuple[str, str]]) -> str:
    """Return the `name@version` to load.

    Args:
        book: the journal.
        pipeline: its name.
        configured: `model` of its configuration, with or without a version.
        there: name and version of all releases on this device, ascending by version.
    """
    releases = [*there]
    slot = book.slot(pipeline)
    # Also after a disk was lost or cleared by hand a pipeline runs something that is there.
    for chosen in (slot.pinned, slot.active, slot.previous):
        if chosen is not None and (chosen.name, chosen.version) in releases:
            return chosen.label
    name, _, version = configured.partition("@")
    if version:
        return configured
    came = {(each.name, each.version) for each in book.installed}
    given_up = {(each.model.name, each.model.version) for each in slot.blocked}
    named = [each for each in releases if each[0] == name and each not in given_up]
    own = [each for each in named if each not in came]
    # What a person has brought may be still to be tried.
    proved = [
        each for each in own if slot.wanted is None or each != (slot.wanted.model.name, slot.wanted.model.version)
    ]
    from_air = [each for each in named if each in came and is_usable(book, pipeline, f"{name}@{each[1]}", releases)]
    usable = proved or from_air or own
    return f"{name}@{usable[-1][1]}" if usable else configured


def is_usable(book: Book, pipeline: str, label: str, there: Collection[tuple[str, str]]) -> bool:
    """Tell whether a pipeline may run `name@version`: it is here, and if it came over the air, somebody answers for it.

    That is a person who pinned it, the trial that it is on there, or one that it has passed without having been taken
    back there. What was stored and is still to be proved is none of these, also where the configuration names it.
    """
    name, _, version = label.partition("@")
    if (name, version) not in there:
        return False
    model, slot = Installed(name=name, version=version), book.slot(pipeline)
    if model in (slot.pinned, slot.active, slot.previous) or model not in book.installed:
        return True
    return model not in book.unproved and slot.is_blocked(model) is None


def accept(pipeline: str, model: Installed, token: int, at: str, *, by_hand: bool = False) -> Step:
    """Note that a twin, or a person on the device, gives a release to a pipeline."""

    def step(book: Book) -> Book:
        before = book.slot(pipeline)
        slot = msgspec.structs.replace(before, wanted=Wanted(model=model, token=token, by_hand=by_hand))
        code = "by-hand" if by_hand else ""
        event = Event(at=at, pipeline=pipeline, what="accepted", model=model.label, code=code)
        return book.with_slot(pipeline, slot, *given_up(pipeline, before, model, at), event)

    return step


def given_up(pipeline: str, slot: Slot, instead: Installed, at: str) -> tuple[Event, ...]:
    """Return the line of the history about what was wanted until now, where another release takes its place.

    None about a release that serves already and was to be fetched once more.
    """
    wanted = slot.wanted
    if wanted is None or wanted.model in (instead, slot.active):
        return ()
    detail = f"{instead.label} is wanted instead"
    return (Event(at=at, pipeline=pipeline, what="withdrawn", model=wanted.model.label, detail=detail),)


def withdraw(pipeline: str, at: str, *, code: str = "", detail: str = "", of: Wanted | None = None) -> Step:
    """Give up what is wanted, because nobody wants it any more; it is not blocked, and nothing is said of it.

    `of`: only while it is this wish, for a twin may just have put another in its place.
    """

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.wanted is None or (
            of is not None and (slot.wanted.model, slot.wanted.by_hand) != (of.model, of.by_hand)
        ):
            return book
        model = slot.wanted.model.label
        event = Event(at=at, pipeline=pipeline, what="withdrawn", model=model, code=code, detail=detail)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, wanted=None, told=None), event)

    return step


def attempted(pipeline: str) -> Step:
    """Count one more try to get what is wanted."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.wanted is None:
            return book
        wanted = msgspec.structs.replace(slot.wanted, attempt=slot.wanted.attempt + 1)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, wanted=wanted))

    return step


def installed(model: Installed) -> Step:
    """Note a release that is about to be put into the store from the air."""

    def step(book: Book) -> Book:
        if model in book.installed:
            return book
        return msgspec.structs.replace(book, installed=(*book.installed, model), unproved=(*book.unproved, model))

    return step


def removed(models: Sequence[Installed]) -> Step:
    """Note releases that were removed from the store."""

    def step(book: Book) -> Book:
        left = tuple(each for each in book.installed if each not in models)
        unproved = tuple(each for each in book.unproved if each not in models)
        return msgspec.structs.replace(book, installed=left, unproved=unproved)

    return step


def begin_trial(
    pipeline: str,
    model: Installed,
    before: Installed | None,
    reference: Reference,
    *,
    now_ns: int,
    at: str,
    boot_id: str = "",
    is_running: bool = True,
) -> Step:
    """Let a release serve from now on, on trial.

    Args:
        pipeline: its name.
        model: the release.
        before: what served before, the way back; None: the pipeline waits again if this one is taken back.
        reference: what that did lately.
        now_ns: UTC.
        at: the same, RFC 3339.
        boot_id: of the machine's boot.
        is_running: the pipeline runs now; else its next run is the first under the release.
    """

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        token = slot.wanted.token if slot.wanted is not None else slot.token
        # Of two trials in a row the first has ended nowhere: what was before it is the way back of both.
        way_back = slot.previous if slot.trial is None else slot.trial.way_back
        trial = OnTrial(
            since_ns=now_ns,
            running=is_running,
            boot_id=boot_id,
            reference=reference,
            way_back=way_back if way_back not in (before, model) else None,
        )
        following = msgspec.structs.replace(slot, active=model, previous=before, trial=trial, wanted=None, token=token)
        return book.with_slot(pipeline, following, Event(at=at, pipeline=pipeline, what="swapped", model=model.label))

    return step


def return_to_previous(pipeline: str, at: str) -> Step:
    """Run the way back again, because it is wanted; what served until now is not blocked, and becomes the way back."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.previous is None:
            return book
        token = slot.wanted.token if slot.wanted is not None else slot.token
        # One that was on trial has not proved itself: nobody goes back to it.
        before = slot.active if slot.trial is None else _way_back_of(slot.trial, slot)
        following = msgspec.structs.replace(
            slot, active=slot.previous, previous=before, trial=None, wanted=None, token=token
        )
        event = Event(at=at, pipeline=pipeline, what="swapped", model=slot.previous.label, detail="given again")
        return book.with_slot(pipeline, following, event)

    return step


def give_directly(pipeline: str, model: Installed, at: str) -> Step:
    """Note that what is wanted runs already, or is here again: nothing is to be proved."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        token = slot.wanted.token if slot.wanted is not None else slot.token
        following = msgspec.structs.replace(slot, active=slot.active or model, wanted=None, token=token)
        detail = "it was fetched again" if slot.active == model else "it runs already"
        event = Event(at=at, pipeline=pipeline, what="kept", model=model.label, detail=detail)
        return book.with_slot(pipeline, following, *((event,) if slot.wanted is not None else ()))

    return step


def want_again(pipeline: str, at: str) -> Step:
    """Have the active release fetched once more: it is gone from the disk."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.active is None or slot.wanted is not None:
            return book
        wanted = Wanted(model=slot.active, token=slot.token)
        event = Event(at=at, pipeline=pipeline, what="missing", model=slot.active.label)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, wanted=wanted), event)

    return step


def run_begins(pipeline: str, at: str, boot_id: str) -> Step:
    """Count a crash if the last run under the release on trial did not say that it ended.

    Where the machine was started again since, it is counted as an outage: a power cut, or a watchdog, or the kernel.
    """

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        trial = slot.trial
        if trial is None:
            return book
        if slot.pinned is not None and slot.pinned != slot.active:  # another release runs: nothing of it is counted
            paused = msgspec.structs.replace(trial, running=False)
            return book.with_slot(pipeline, msgspec.structs.replace(slot, trial=paused))
        begun = msgspec.structs.replace(trial, running=True, boot_id=boot_id)
        if not trial.running:
            return book.with_slot(pipeline, msgspec.structs.replace(slot, trial=begun))
        model = slot.active.label if slot.active is not None else ""
        if trial.boot_id and boot_id and trial.boot_id != boot_id:
            ended = msgspec.structs.replace(begun, outages=trial.outages + 1)
            event = Event(at=at, pipeline=pipeline, what="outage", model=model, detail=f"{ended.outages} so far")
        else:
            ended = msgspec.structs.replace(begun, crashes=trial.crashes + 1)
            event = Event(at=at, pipeline=pipeline, what="crashed", model=model, detail=f"{ended.crashes} so far")
        return book.with_slot(pipeline, msgspec.structs.replace(slot, trial=ended), event)

    return step


def run_ended(pipeline: str) -> Step:
    """Note that a run ended as it should: the next start is no sign of a crash."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.trial is None or not slot.trial.running:
            return book
        trial = msgspec.structs.replace(slot.trial, running=False)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, trial=trial))

    return step


def run_goes_on(pipeline: str, boot_id: str) -> Step:
    """Note whether the run that is under way is one of the release on trial: another may be pinned, or not any more."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.trial is None:
            return book
        is_of_it = slot.pinned in (None, slot.active)
        trial = msgspec.structs.replace(slot.trial, running=is_of_it, boot_id=boot_id)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, trial=trial))

    return step


def prove(pipeline: str, at: str) -> Step:
    """End the trial well. The release before stays the way back of a person."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.trial is None:
            return book
        model = slot.active.label if slot.active is not None else ""
        event = Event(at=at, pipeline=pipeline, what="proven", model=model)
        unproved = tuple(each for each in book.unproved if each != slot.active)
        book = msgspec.structs.replace(book, unproved=unproved)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, trial=None), event)

    return step


def take_back(pipeline: str, code: str, reason: str, at: str) -> Step:
    """Return to the release before, and block the one that serves now."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.active is None:
            return book
        following = msgspec.structs.replace(
            slot,
            active=slot.previous,
            previous=_way_back_of(slot.trial, slot),
            trial=None,
            blocked=_blocking(slot, slot.active, code, reason, at),
        )
        event = Event(at=at, pipeline=pipeline, what="reverted", model=slot.active.label, code=code, detail=reason)
        return book.with_slot(pipeline, following, event)

    return step


def take_back_and_tell(pipeline: str, code: str, reason: str, at: str) -> Step:
    """Do the same without a gateway, whose next start tells the bridge: it must not go on believing in the release."""

    def step(book: Book) -> Book:
        active = book.slot(pipeline).active
        if active is None:
            return book
        update = UpdateState(
            pipeline=pipeline,
            phase="reverted",
            model=ModelRef(name=active.name, version=active.version),
            fencing_token=book.fencing_token,
            at=at,
            code=code,
            reason=reason,
        )
        return tell(update)(take_back(pipeline, code, reason, at)(book))

    return step


def refuse(pipeline: str, model: Installed, code: str, reason: str, at: str) -> Step:
    """Give up what is wanted, before it ever served, and block it."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        following = msgspec.structs.replace(slot, wanted=None, blocked=_blocking(slot, model, code, reason, at))
        event = Event(at=at, pipeline=pipeline, what="refused", model=model.label, code=code, detail=reason)
        return book.with_slot(pipeline, following, event)

    return step


def pin(pipeline: str, model: Installed, at: str) -> Step:
    """Keep a release, whatever the bridge gives. Who does that to one that was given up wants it: it is no more."""
    unblocked = unblock(pipeline, model)

    def step(book: Book) -> Book:
        book = unblocked(book)
        slot = msgspec.structs.replace(book.slot(pipeline), pinned=model)
        return book.with_slot(pipeline, slot, Event(at=at, pipeline=pipeline, what="pinned", model=model.label))

    return step


def unblock(pipeline: str, model: Installed) -> Step:
    """Forget that a release was given up: a person wants it."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.is_blocked(model) is None:
            return book
        blocked = tuple(each for each in slot.blocked if each.model != model)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, blocked=blocked))

    return step


def unpin(pipeline: str, at: str) -> Step:
    """Let assignments count again."""

    def step(book: Book) -> Book:
        slot = book.slot(pipeline)
        if slot.pinned is None:
            return book
        event = Event(at=at, pipeline=pipeline, what="unpinned", model=slot.pinned.label)
        return book.with_slot(pipeline, msgspec.structs.replace(slot, pinned=None), event)

    return step


def tell(update: UpdateState, *, of: Installed | None = None) -> Step:
    """Keep the last word about an update; `of`: only while this is wanted, for it may just have been withdrawn."""

    def step(book: Book) -> Book:
        slot = book.slot(update.pipeline)
        if of is not None and (slot.wanted is None or slot.wanted.model != of):
            return book
        return book.with_slot(update.pipeline, msgspec.structs.replace(slot, told=update))

    return step


def kept(book: Book, served: Iterable[ModelRef] = ()) -> frozenset[Installed]:
    """Return the releases that must not be removed: active, way back, pinned, wanted, and those that serve now."""
    found = {Installed(name=each.name, version=each.version) for each in served}
    for slot in book.pipelines.values():
        found |= {each for each in (slot.active, slot.previous, slot.pinned) if each is not None}
        if slot.wanted is not None:
            found.add(slot.wanted.model)
        if slot.trial is not None and slot.trial.way_back is not None:
            found.add(slot.trial.way_back)
    return frozenset(found)


def _way_back_of(trial: OnTrial | None, slot: Slot) -> Installed | None:
    """Return what a person may go back to once a trial was taken back: as before it; None if that was given up."""
    if trial is None or trial.way_back is None or slot.is_blocked(trial.way_back) is not None:
        return None
    return trial.way_back


def _blocking(slot: Slot, model: Installed, code: str, reason: str, at: str) -> tuple[Blocked, ...]:
    others = tuple(each for each in slot.blocked if each.model != model)
    return (*others, Blocked(model=model, code=code, reason=reason, at=at))[-MAX_BLOCKED:]
