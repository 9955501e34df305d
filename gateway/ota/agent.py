"""Updates of models on one device: takes the bridge's wishes, has them carried out, and does what people ask for.

Two threads: `ota-fetch` brings releases into the store and swaps them in (`bringing`); `ota-trial` judges releases on
trial once a second (`serving`) and does what was asked for. What is decided lies in pure code (`twin`, `slots`,
`trial`), and each step is in the journal before it is taken. Where the disk does not take the journal, nothing new is
tried and every wish waits; only taking back goes on, and is written down when the disk allows.
"""

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import structlog

from gateway.config import Ota
from gateway.errors import ModelAwaitedError
from gateway.ota import slots
from gateway.ota.around import Around, Means, Repository
from gateway.ota.bay import Bay
from gateway.ota.bringing import Bringing
from gateway.ota.errors import OtaError
from gateway.ota.features import Capability, is_on
from gateway.ota.floor import Floor
from gateway.ota.floor_file import FloorStatus
from gateway.ota.footing import Footing
from gateway.ota.install import Installer
from gateway.ota.journal import Book, Event, Installed, Journal, JournalError, Slot
from gateway.ota.serving import Serving
from gateway.ota.telling import Telling
from gateway.ota.twin import judge as judge_twin
from gateway.threads import in_thread
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import ModelRef, Twin, UpdatePhase, decode
from gateway.wire.times import rfc3339

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
JOIN_SECONDS: Final = 10.0
"""So long the end of a run waits for the thread that fetches; what it is busy with may take longer."""
MAX_TWIN_BYTES: Final = 1 << 20


class OtaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How updates stand, for `gateway ota status`."""

    running: bool = True
    fencing_token: int = 0
    twin_version: int = 0
    features: dict[str, bool] = {}
    pipelines: dict[str, Slot] = {}
    serving: dict[str, ModelRef | None] = {}
    awaiting: tuple[str, ...] = ()  # pipelines for which no release is here
    stale_since: str | None = None
    repository_problem: str = ""  # a code, for programs
    repository_words: str = ""
    journal_problem: str = ""
    damage: str = ""
    floor: FloorStatus = FloorStatus()
    history: tuple[Event, ...] = ()


class OtaAgent:
    """Updates of one gateway. `run` belongs to the event loop, everything else to any thread."""

    def __init__(
        self,
        settings: Ota,
        journal: Journal,
        repository: Repository,
        installer: Installer,
        around: Around,
        *,
        floor: Floor,
    ) -> None:
        """Take parts; nothing is asked yet."""
        means = Means(settings, journal, repository, installer, around, floor)
        self._journal = journal
        self._repository = repository
        self._around = around
        self._bays = means.bays
        self._requests: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()
        self._ended = threading.Event()  # of this run alone: a thread that one before has left must not begin anew
        self._ends = threading.Lock()
        self._fetcher: threading.Thread | None = None
        self._fetch_wake = threading.Event()
        self._trial_wake = threading.Event()
        self._telling = Telling(means, self._trial_wake.set)
        self._serving = Serving(means, self._telling)
        self._floor = floor
        self._footing = Footing(means, self.take_desired)
        self._bringing = Bringing(means, self._footing, self._telling, self._serving, self._stopping)
        self._connects = -1
        self._damage_told = False
        self._twin_refused = ""

    def add(self, name: str, bay: Bay) -> None:
        """Take a pipeline, before `run`."""
        self._bays[name] = bay

    # ---- told by the program ------------------------------------------------------------------------

    def run_begins(self, pipeline: str) -> str:
        """Return the `name@version` that a pipeline is to load; see `Serving.run_begins`."""
        return self._serving.run_begins(pipeline)

    def awaited(self, pipeline: str) -> ModelAwaitedError | None:
        """Say that a pipeline has nothing to run and waits for a release; None if that is not so."""
        return self._serving.awaited(pipeline)

    def run_ended(self, pipeline: str) -> None:
        """Note that a run of a pipeline ended for a reason that is not the model's."""
        self._serving.run_ended(pipeline)

    def take_desired(self, payload: bytes) -> None:
        """Take a `twin/desired`; returns at once."""
        self._ask(lambda: self._desired(payload))

    # ---- asked by people ----------------------------------------------------------------------------

    def status(self) -> OtaStatus:
        """Tell how it stands."""
        book = self._journal.book
        stale = self._repository.stale_since_ns
        return OtaStatus(
            fencing_token=book.fencing_token,
            twin_version=book.twin_version,
            features=book.features,
            pipelines={name: book.slot(name) for name in self._bays},
            serving=self._telling.serving(),
            awaiting=tuple(sorted(self._telling.awaiting)),
            stale_since=rfc3339(stale) if stale is not None else None,
            repository_problem=self._bringing.repository_problem,
            repository_words=self._bringing.repository_words,
            journal_problem=self._telling.journal_problem,
            damage=self._journal.damage,
            floor=self._floor.status,
            history=book.history,
        )

    def has(self, capability: Capability) -> bool:
        """Tell whether the bridge leaves an optional capability on."""
        return is_on(self._journal.book.features, capability)

    def pin(self, pipeline: str, model: Installed) -> None:
        """Have a pipeline keep a release that is on this device; carried out soon.

        Raises:
            OtaError: there is no such pipeline, or no such release here.
        """
        self._require(pipeline)
        check_pin(model, self._around.there())
        self._ask(lambda: self._by_hand(pipeline, slots.pin(pipeline, model, self._telling.at()), "pinned"))

    def install(self, pipeline: str, model: Installed, *, again: bool = False) -> None:
        """Bring a release of the signed list and try it, as if the bridge had assigned it; carried out soon.

        What the bridge assigns next counts again.

        Raises:
            OtaError: there is no such pipeline, a release is pinned there, or this one was given up there and is not
                to be tried again.
        """
        self._require(pipeline)
        check_install(self._journal.book.slot(pipeline), pipeline, model, again=again)
        self._ask(lambda: self._want(pipeline, model))

    def unpin(self, pipeline: str) -> None:
        """Let assignments count again; carried out soon. Raises OtaError if there is no such pipeline."""
        self._require(pipeline)
        self._ask(lambda: self._by_hand(pipeline, slots.unpin(pipeline, self._telling.at()), "running"))

    def rollback(self, pipeline: str) -> None:
        """Return to the release before, and block the present one; carried out soon.

        Raises:
            OtaError: there is no such pipeline, or no way back.
        """
        self._require(pipeline)
        check_rollback(self._journal.book, pipeline)
        self._ask(lambda: self._roll_back(pipeline))

    def refresh_soon(self) -> None:
        """Look at the repository now instead of when it is due."""
        self._bringing.refresh_soon()
        self._fetch_wake.set()

    # ---- running ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        with self._ends:
            self._ended = threading.Event()
            self._stopping.clear()
            self._repository.resume()
        if self._journal.damage and not self._damage_told:
            self._around.note("ota_journal_damaged", "error", self._journal.damage)
            self._damage_told = True
        try:
            failed = await in_thread("ota", partial(self._both, self._ended))
            if failed is not None:
                raise failed
        finally:
            self.stop()

    def stop(self) -> None:
        """Have both threads end soon."""
        self._end(self._ended)

    def _end(self, ended: threading.Event) -> None:
        """Have the threads of a run end soon; another run that has begun since goes on."""
        with self._ends:
            ended.set()
            if ended is self._ended:
                self._stopping.set()
                self._repository.stop()
        self._fetch_wake.set()
        self._trial_wake.set()

    def _both(self, ended: threading.Event) -> Exception | None:
        failures: list[Exception] = []
        before = self._fetcher

        def fetching() -> None:
            try:
                if before is not None:
                    before.join()  # it may be in the middle of a trial inference; two must not fetch at once
                self._fetch_all(ended)
            except Exception as error:  # noqa: BLE001 - handed to the supervisor, which waits for this thread
                failures.append(error)
                self._end(ended)

        self._fetcher = fetcher = threading.Thread(target=fetching, name="ota-fetch", daemon=True)
        fetcher.start()
        try:
            while not ended.is_set():
                self.tick()
                self._trial_wake.wait(TICK_SECONDS)
                self._trial_wake.clear()
        finally:
            self._end(ended)
            fetcher.join(JOIN_SECONDS)
        return failures[0] if failures else None

    def _fetch_all(self, ended: threading.Event) -> None:
        while not ended.is_set():
            self._bringing.fetch_round()
            self._fetch_wake.wait(TICK_SECONDS)
            self._fetch_wake.clear()

    def fetch_round(self) -> None:
        """Try once to bring what each pipeline wants, where its time has come; refresh the metadata now and then."""
        self._bringing.fetch_round()

    def tick(self) -> None:
        """Do what was asked for, judge what is on trial, and say what has changed."""
        problems = [self._telling.tried(self._carry_out)]
        problems += [self._telling.tried(partial(self._serving.judge, pipeline)) for pipeline in self._bays]
        problems += [self._telling.tried(partial(self._serving.want_missing, pipeline)) for pipeline in self._bays]
        problems += [self._telling.tried(self._journal.flush)]
        self._telling.journal_fares("trial", next(filter(None, problems), ""))
        self._bringing.watch_repository()
        connects = self._around.connects()
        if connects != self._connects:
            self._connects = connects
            self._bringing.try_again()
            self._telling.report_again()
            self._fetch_wake.set()
        self._serving.tell_who_waits()
        self._telling.report()

    def _carry_out(self) -> None:
        while self._requests:
            request = self._requests.popleft()
            try:
                request()
            except JournalError:
                self._requests.appendleft(request)  # what the disk does not take now is tried again, in order
                raise

    # ---- wishes -------------------------------------------------------------------------------------

    def _desired(self, payload: bytes) -> None:
        try:
            if len(payload) > MAX_TWIN_BYTES:
                raise MalformedMessageError(f"it has {len(payload)} bytes")
            twin = decode(payload, Twin)
        except MalformedMessageError as error:
            self._refuse_twin("malformed", str(error))
            return
        most_token = self._footing.most_token()
        # First: a floor that is refused is set anew with the token of a twin that waits for it.
        if twin.fencing_token <= most_token and not self._footing.accepts(payload, twin.fencing_token):
            return
        system = self._around.system
        models = twin if system is None else _without_system(twin)
        ruling = judge_twin(
            self._journal.book,
            models,
            [*self._bays],
            self._telling.serving(),
            self._telling.at(),
            most_token=most_token,
        )
        if ruling.refused:
            self._refuse_twin(ruling.code, ruling.refused)
            return
        if not ruling.known:
            self._footing.raise_to(twin.fencing_token)
        if system is not None:
            try:
                system.wish(twin)  # first: what is accepted here is not looked at again
            except OtaError as error:
                self._refuse_twin(error.code, str(error))
                return
        self._twin_refused = self._telling.refused = ""
        if ruling.known:
            self._telling.report_again()  # whoever hands it over again may have lost what we said
            return
        self._journal.change(lambda _book: ruling.book)
        self._telling.of_strangers([each for each in ruling.updates if each.pipeline not in self._bays])
        self._bringing.forget_pauses()
        log.info("twin_accepted", version=twin.version, fencing_token=twin.fencing_token)
        # What is here already is given back now: the thread that fetches may be busy with other pipelines for hours.
        for pipeline, bay in self._bays.items():
            self._telling.tried(partial(self._give_back_wanted, pipeline, bay))
        self._fetch_wake.set()

    def _refuse_twin(self, code: str, reason: str) -> None:
        self._telling.refused = code
        self._telling.report_again()
        if self._twin_refused == reason:
            return
        self._twin_refused = reason
        log.warning("twin_refused", code=code, reason=reason)
        self._around.note("twin_refused", "warning", f"the desired twin does not count: {reason}")

    def _give_back_wanted(self, pipeline: str, bay: Bay) -> None:
        slot = self._journal.book.slot(pipeline)
        if slot.wanted is None or slot.pinned is not None or not bay.lock.acquire(blocking=False):
            return  # whoever holds the lock may wait for a disk; the thread that fetches gives back, too
        try:
            self._serving.give_back(pipeline, bay, slot.wanted.model)
        finally:
            bay.lock.release()

    # ---- by hand ------------------------------------------------------------------------------------

    def _by_hand(self, pipeline: str, step: slots.Step, phase: UpdatePhase) -> None:
        bay = self._bays[pipeline]
        goes_on = slots.run_goes_on(pipeline, self._around.boot_id)
        with bay.lock:
            runs = bay.serving is not None  # else its next run says that it begins
            slot = self._journal.change(lambda book: goes_on(step(book)) if runs else step(book)).slot(pipeline)
            self._serving.begins(pipeline)  # the time in which another was pinned is none of a trial
            self._serving.serve(pipeline, bay)
        model = slots.running(slot) or _installed(bay.serving)
        log.info("model_by_hand", pipeline=pipeline, phase=phase, model=model.label if model else "")
        if model is not None:
            self._telling.say(pipeline, phase, model, code="pinned" if phase == "pinned" else "")
        self._fetch_wake.set()

    def _want(self, pipeline: str, model: Installed) -> None:
        slot = self._journal.book.slot(pipeline)
        if slot.active == model:
            if slot.wanted is not None:
                self._journal.change(slots.withdraw(pipeline, self._telling.at()))
            return
        accepted = slots.accept(pipeline, model, self._journal.book.fencing_token, self._telling.at(), by_hand=True)
        self._journal.change(lambda book: accepted(slots.unblock(pipeline, model)(book)))
        self._bringing.forget_pauses()
        log.info("model_wanted_by_hand", pipeline=pipeline, model=model.label)
        self._fetch_wake.set()

    def _roll_back(self, pipeline: str) -> None:
        bay = self._bays[pipeline]
        with bay.lock:
            try:
                check_rollback(self._journal.book, pipeline)
            except OtaError as error:  # asked twice: the first was carried out meanwhile
                log.info("ota_rollback_done_already", pipeline=pipeline, reason=str(error))
                return
            self._serving.take_back(pipeline, "by-hand", "a person on the device went back")

    def _require(self, pipeline: str) -> None:
        if pipeline not in self._bays:
            raise OtaError(f"there is no pipeline {pipeline!r}; there is {', '.join(sorted(self._bays)) or 'none'}")

    def _ask(self, request: Callable[[], None]) -> None:
        self._requests.append(request)
        self._trial_wake.set()


def _without_system(twin: Twin) -> Twin:
    return msgspec.structs.replace(twin, assignments=[each for each in twin.assignments if each.kind != "os"])


def check_pin(model: Installed, there: list[tuple[str, str]]) -> None:
    """Make sure that a release can be pinned. Raises OtaError if it is not on this device."""
    if (model.name, model.version) not in there:
        known = ", ".join(f"{name}@{version}" for name, version in there) or "none"
        raise OtaError(f"{model.label} is not on this device; there is {known}")


def check_install(slot: Slot, pipeline: str, model: Installed, *, again: bool = False) -> None:
    """Make sure that a release may be tried; `again`: also one that was given up there.

    Raises:
        OtaError: another is pinned, or it was given up there.
    """
    if slot.pinned is not None:
        raise OtaError(f"pipeline {pipeline} keeps {slot.pinned.label}: `gateway ota unpin {pipeline}` first")
    if (blocked := slot.is_blocked(model)) is not None and not again:
        raise OtaError(
            f"{model.label} was given up on pipeline {pipeline}: {blocked.reason}; publish it anew, mended, or have it "
            "tried once more with `--again`"
        )


def check_rollback(book: Book, pipeline: str) -> None:
    """Make sure that there is a way back. Raises OtaError if there is none, or if another release is kept there."""
    slot = book.slot(pipeline)
    if slot.pinned is not None and slot.pinned != slot.active:
        raise OtaError(f"pipeline {pipeline} keeps {slot.pinned.label}: `gateway ota unpin {pipeline}` first")
    if slot.active is None or slot.previous is None:
        raise OtaError(f"pipeline {pipeline} has no release to go back to: pin one with `gateway ota pin`")


def _installed(ref: ModelRef | None) -> Installed | None:
    return Installed(name=ref.name, version=ref.version) if ref is not None else None
