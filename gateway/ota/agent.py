"""Updates of models on one device: takes the bridge's wishes, carries them out, and says what became of them.

Two threads: `ota-fetch` brings releases into the store and swaps them in, which may take hours over a thin link;
`ota-trial` judges releases on trial once a second and does what people ask for. What is decided lies in pure code
(`twin`, `slots`, `trial`), each step is in the journal before it is taken, and the model of a pipeline is exchanged
under the lock of its bay alone. Where the disk does not take the journal, nothing new is tried and every wish waits;
only taking back goes on, and is written down when the disk allows.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, Protocol

import msgspec
import structlog

from gateway.config import Ota
from gateway.errors import BackendUnavailableError, InferenceError, ModelError, WeightsWithheldError
from gateway.inference.model import Model
from gateway.intake import same_source
from gateway.ota import slots
from gateway.ota.bay import Bay
from gateway.ota.canary import CanaryError
from gateway.ota.errors import BudgetError, NoRootError, OtaError, StoppedError, TrustError
from gateway.ota.figures import OtaMetrics
from gateway.ota.install import (
    DamagedReleaseError,
    Installer,
    KeyAwaitedError,
    NothingForUsError,
    Plan,
    Source,
    Stored,
)
from gateway.ota.journal import Book, Event, Installed, Journal, JournalError, Slot
from gateway.ota.shadow import Shadow
from gateway.ota.trial import Proven, Seen, TakeBack, judge
from gateway.ota.twin import judge as judge_twin
from gateway.ota.twin import reported
from gateway.threads import in_thread
from gateway.vault.errors import VaultError
from gateway.wire.errors import MalformedMessageError
from gateway.wire.manifest import ModelManifest
from gateway.wire.messages import ModelRef, Twin, UpdatePhase, UpdateState, decode, encode
from gateway.wire.times import rfc3339

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
FIRST_RETRY_SECONDS: Final = 10.0
MAX_RETRY_SECONDS: Final = 3600.0
KEY_RETRY_SECONDS: Final = 5.0
MAX_TWIN_BYTES: Final = 1 << 20

_FINAL: Final = (CanaryError, NothingForUsError, DamagedReleaseError)
"""The same release would fail again: it is blocked."""

Severity = Literal["info", "warning", "error"]


class Repository(Source, Protocol):
    """What this needs of `gateway.ota.fetch.Repository`."""

    def stop(self) -> None: ...
    def resume(self) -> None: ...
    @property
    def stale_since_ns(self) -> int | None: ...


class System(Protocol):
    """Updates of the system itself (`gateway.osupdate`), which come and are told in the same twins."""

    def wish(self, twin: Twin) -> None:
        """Take what a desired twin, whose fence was looked at, says of the system; durable. Raises OtaError."""
        ...

    def report(self, twin: Twin) -> Twin:
        """Add what is to be said of the system to a reported twin."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What updates need of the program around them. Everything may be called from any thread."""

    there: Callable[[], list[tuple[str, str]]]  # name and version of all releases here, ascending by version
    report: Callable[[bytes], None]  # publishes `twin/reported`, retained
    connects: Callable[[], int]  # how often the way to the bridge has been made
    renew: Callable[[], None]  # asks for content keys, and the certificate, now
    note: Callable[[str, Severity, str], None]  # code, severity, words, for the cloud
    metrics: OtaMetrics
    system: System | None = None  # None: what is assigned of kind `os` is refused as a pipeline that is not here
    wall_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random


class OtaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How updates stand, for `gateway ota status`."""

    running: bool = True
    fencing_token: int = 0
    twin_version: int = 0
    features: dict[str, bool] = {}
    pipelines: dict[str, Slot] = {}
    serving: dict[str, ModelRef | None] = {}
    stale_since: str | None = None
    repository_problem: str = ""
    journal_problem: str = ""
    damage: str = ""
    history: tuple[Event, ...] = ()


@dataclass(slots=True)
class _Pause:
    """When a pipeline's update is tried again."""

    until: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class _Progress:
    """Of the update under way."""

    fetched: int = 0
    told: dict[str, object] = field(default_factory=dict)


class OtaAgent:
    """Updates of one gateway. `run` belongs to the event loop, everything else to any thread."""

    def __init__(
        self, settings: Ota, journal: Journal, repository: Repository, installer: Installer, around: Around
    ) -> None:
        """Take parts; nothing is asked yet."""
        self._settings = settings
        self._journal = journal
        self._repository = repository
        self._installer = installer
        self._around = around
        self._bays: dict[str, Bay] = {}
        self._began: dict[str, float] = {}  # monotonic, of trials in this run of the program
        self._pauses: dict[str, _Pause] = {}
        self._requests: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()
        self._fetch_wake = threading.Event()
        self._trial_wake = threading.Event()
        self._strangers: dict[str, UpdateState] = {}  # words about pipelines that are not here
        self._reported = b""
        self._connects = -1
        self._refreshed_at: float | None = None
        self._repository_problem = ""
        self._journal_problems: dict[str, str] = {}  # by thread
        self._damage_told = False
        self._missing: dict[str, str] = {}  # what each pipeline should run and is not there
        self._stale_told = False
        self._twin_refused = ""
        self._gaps_told: dict[str, ModelRef] = {}

    def add(self, name: str, bay: Bay) -> None:
        """Take a pipeline, before `run`."""
        self._bays[name] = bay

    # ---- told by the program ------------------------------------------------------------------------

    def run_begins(self, pipeline: str) -> str:
        """Return the `name@version` that a pipeline is to load; counts a crash if the last run ended badly.

        A run that ended badly and cannot be counted, because the disk takes nothing, is one too many: who dies again
        and again would never come to the number that ends it.
        """
        bay = self._bays[pipeline]
        with bay.lock:
            before = self._journal.book.slot(pipeline).trial
            slot = self._journal.insist(slots.run_begins(pipeline, self._at())).slot(pipeline)
            counted = self._write()
            if slot.trial is not None and slot.trial.crashes >= self._settings.trial.max_crashes:
                self._take_back(pipeline, "crash-loop", f"{slot.trial.crashes} runs under it ended badly")
            elif slot.trial is not None and before is not None and before.running and not counted:
                self._take_back(pipeline, "crash-loop", "a run under it ended badly, and the disk takes no count of it")
            self._began[pipeline] = self._around.monotonic()
            return self._label(pipeline)

    def run_ended(self, pipeline: str) -> None:
        """Note that a run of a pipeline ended for a reason that is not the model's."""
        self._journal.insist(slots.run_ended(pipeline))
        self._write()

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
            serving=self._serving(),
            stale_since=rfc3339(stale) if stale is not None else None,
            repository_problem=self._repository_problem,
            journal_problem=next(filter(None, self._journal_problems.values()), ""),
            damage=self._journal.damage,
            history=book.history,
        )

    def pin(self, pipeline: str, model: Installed) -> None:
        """Have a pipeline keep a release that is on this device; carried out soon.

        Raises:
            OtaError: there is no such pipeline, or no such release here.
        """
        self._require(pipeline)
        check_pin(model, self._around.there())
        self._ask(lambda: self._by_hand(pipeline, slots.pin(pipeline, model, self._at()), "pinned"))

    def unpin(self, pipeline: str) -> None:
        """Let assignments count again; carried out soon. Raises OtaError if there is no such pipeline."""
        self._require(pipeline)
        self._ask(lambda: self._by_hand(pipeline, slots.unpin(pipeline, self._at()), "running"))

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
        self._refreshed_at = None
        self._fetch_wake.set()

    # ---- running ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        self._stopping.clear()
        self._repository.resume()
        if self._journal.damage and not self._damage_told:
            self._around.note("ota_journal_damaged", "error", self._journal.damage)
            self._damage_told = True
        try:
            failed = await in_thread("ota", self._both)
            if failed is not None:
                raise failed
        finally:
            self.stop()

    def stop(self) -> None:
        """Have both threads end soon."""
        self._stopping.set()
        self._fetch_wake.set()
        self._trial_wake.set()
        self._repository.stop()

    def _both(self) -> Exception | None:
        failures: list[Exception] = []

        def fetching() -> None:
            try:
                self._fetch_all()
            except Exception as error:  # noqa: BLE001 - handed to the supervisor, which waits for this thread
                failures.append(error)
                self.stop()

        fetcher = threading.Thread(target=fetching, name="ota-fetch", daemon=True)
        fetcher.start()
        try:
            while not self._stopping.is_set():
                self.tick()
                self._trial_wake.wait(TICK_SECONDS)
                self._trial_wake.clear()
        finally:
            self.stop()
            fetcher.join(10.0)
        return failures[0] if failures else None

    def tick(self) -> None:
        """Do what was asked for, judge what is on trial, and say what has changed."""
        problems = [self._tried(self._carry_out)]
        problems += [self._tried(partial(self._judge, pipeline)) for pipeline in self._bays]
        problems += [self._tried(self._journal.flush)]
        self._journal_fares("trial", next(filter(None, problems), ""))
        self._watch_repository()
        connects = self._around.connects()
        if connects != self._connects:
            self._connects = connects
            for pause in self._pauses.values():
                pause.until = 0.0
            self._reported = b""
            self._fetch_wake.set()
        self._report()

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
        system = self._around.system
        models = twin if system is None else _without_system(twin)
        ruling = judge_twin(self._journal.book, models, [*self._bays], self._serving(), self._at())
        if ruling.refused:
            self._refuse_twin(ruling.code, ruling.refused)
            return
        if system is not None:
            try:
                system.wish(twin)  # first: what is accepted here is not looked at again
            except OtaError as error:
                self._refuse_twin(error.code, str(error))
                return
        self._twin_refused = ""
        if ruling.known:
            self._reported = b""  # whoever hands it over again may have lost what we said
            return
        self._journal.change(lambda _book: ruling.book)
        self._strangers = {each.pipeline: each for each in ruling.updates if each.pipeline not in self._bays}
        for pipeline in self._bays:
            self._pauses.pop(pipeline, None)
        log.info("twin_accepted", version=twin.version, fencing_token=twin.fencing_token)
        # What is here already is given back now: the thread that fetches may be busy with other pipelines for hours.
        for pipeline, bay in self._bays.items():
            self._tried(partial(self._give_back_wanted, pipeline, bay))
        self._fetch_wake.set()

    def _refuse_twin(self, code: str, reason: str) -> None:
        self._reported = b""
        if self._twin_refused == reason:
            return
        self._twin_refused = reason
        log.warning("twin_refused", code=code, reason=reason)
        self._around.note("twin_refused", "warning", f"the desired twin does not count: {reason}")

    # ---- fetching and swapping in -------------------------------------------------------------------

    def _fetch_all(self) -> None:
        while not self._stopping.is_set():
            self.fetch_round()
            self._fetch_wake.wait(TICK_SECONDS)
            self._fetch_wake.clear()

    def fetch_round(self) -> None:
        """Try once to bring what each pipeline wants, where its time has come; refresh the metadata now and then."""
        if not any(self._journal.book.slot(name).wanted is not None for name in self._bays):
            self._journal_fares("fetch", "")
        for pipeline, bay in self._bays.items():
            slot = self._journal.book.slot(pipeline)
            pause = self._pauses.setdefault(pipeline, _Pause())
            if self._stopping.is_set():
                return
            if slot.wanted is not None and slot.pinned is None and self._around.monotonic() >= pause.until:
                problem = self._tried(partial(self._update, pipeline, bay, slot.wanted.model))
                self._journal_fares("fetch", problem)
                if problem:
                    pause.until = self._around.monotonic() + FIRST_RETRY_SECONDS
        due = self._refreshed_at is None or (
            self._around.monotonic() - self._refreshed_at >= self._settings.refresh_seconds
        )
        if due and not self._stopping.is_set():
            try:
                self._refresh()
            except OtaError as error:
                self._repository_failed(error)

    def _refresh(self) -> None:
        self._refreshed_at = self._around.monotonic()
        self._repository.refresh()
        if self._repository_problem:
            log.info("ota_repository_again")
        self._repository_problem = ""

    def _repository_failed(self, error: OtaError) -> None:
        if self._repository_problem != error.code and not isinstance(error, StoppedError):
            if isinstance(error, NoRootError):
                log.error("ota_disabled", code=error.code, error=str(error), consequence="pipelines run what they have")
                self._around.note("ota_disabled", "error", str(error))
            else:
                log.warning("ota_repository_fails", code=error.code, error=str(error))
            if isinstance(error, TrustError):
                self._around.note("ota_untrusted", "error", str(error))
        self._repository_problem = error.code

    def _update(self, pipeline: str, bay: Bay, model: Installed) -> None:
        """Carry out what is wanted, as far as that goes now."""
        try:
            if self._give_back(pipeline, bay, model):
                return
            self._journal.change(slots.attempted(pipeline))
            self._bring(pipeline, bay, model)
            self._pauses.pop(pipeline, None)
        except StoppedError:
            return
        except _FINAL as error:
            self._refuse(pipeline, model, error.code, str(error))
        except OtaError as error:
            if isinstance(error, TrustError):
                self._repository_failed(error)
            self._postpone(pipeline, model, error)
        except (ModelError, BackendUnavailableError) as error:
            self._refuse(pipeline, model, "golden", str(error))
        except (InferenceError, VaultError, WeightsWithheldError) as error:
            self._postpone(pipeline, model, _Later(str(error)))

    def _give_back_wanted(self, pipeline: str, bay: Bay) -> None:
        slot = self._journal.book.slot(pipeline)
        if slot.wanted is not None and slot.pinned is None:
            self._give_back(pipeline, bay, slot.wanted.model)

    def _give_back(self, pipeline: str, bay: Bay, model: Installed) -> bool:
        """Return to a release that has proved itself here, as when a rollout is given up; no trial."""
        with bay.lock:
            slot = self._journal.book.slot(pipeline)
            if slot.previous == model and (model.name, model.version) in self._around.there():
                self._journal.change(slots.return_to_previous(pipeline, self._at()))
                self._serve(pipeline, bay)
                self._say(pipeline, "running", model)
                return True
            if slot.active is None and bay.serves(model.label):
                self._journal.change(slots.give_directly(pipeline, model))
                self._say(pipeline, "running", model)
                return True
        return False

    def _bring(self, pipeline: str, bay: Bay, model: Installed) -> None:
        self._refresh()
        offer = self._repository.offer(model.name, model.version)
        plan = self._installer.plan(offer, bay.settings)
        self._require_same_source(bay, offer.manifest)
        stored = self._installer.is_stored(plan)
        cost: Stored | None = None
        if stored is None:
            self._say(pipeline, "fetching", model, full_bytes=plan.full.size_bytes)
            self._journal.change(slots.installed(model))
            cost = self._install(pipeline, model, plan)
            stored = cost.release
            self._around.metrics.fetched(cost.fetched_bytes, cost.full_bytes)
        self._say(pipeline, "checking", model, cost=cost)
        self._installer.prove(plan, stored, bay.settings)
        loaded = bay.load(model.label)
        comparison = self._compare(bay, loaded)
        self._swap_in(pipeline, bay, model, loaded, comparison=comparison, cost=cost)

    def _install(self, pipeline: str, model: Installed, plan: Plan) -> Stored:
        room = self._installer.room()
        if room is not None and room < plan.bytes_to_fetch:
            raise BudgetError(
                f"{model.name} {model.version} needs {plan.bytes_to_fetch} bytes over the link, whose budget has "
                f"{room} left"
            )
        told = [0.0]

        def progress(fetched: int) -> None:
            now = self._around.monotonic()
            if now - told[0] >= 10.0:
                told[0] = now
                log.info("ota_fetching", pipeline=pipeline, model=model.label, fetched_bytes=fetched)

        return self._installer.install(plan, progress)

    def _require_same_source(self, bay: Bay, manifest: ModelManifest) -> None:
        serving = bay.manifest
        if serving is not None and not same_source(serving.input, manifest.input):
            raise NothingForUsError(
                f"{manifest.name} {manifest.version} wants other samples than the source of its pipeline gives"
            )

    def _compare(self, bay: Bay, loaded: Model) -> dict[str, float]:
        wanted = self._settings.trial.shadow_samples
        serving = bay.manifest
        if not wanted or serving is None or serving.input != loaded.manifest.input:
            return {}
        try:
            return Shadow(loaded, wanted, self._around.monotonic).compare(bay.watch.let_look, self._stopping)
        except BaseException:
            loaded.close()
            raise

    def _swap_in(
        self,
        pipeline: str,
        bay: Bay,
        model: Installed,
        loaded: Model,
        *,
        comparison: dict[str, float],
        cost: Stored | None,
    ) -> None:
        with bay.lock:
            slot = self._journal.book.slot(pipeline)
            now = bay.serving
            still = slot.wanted is not None and slot.wanted.model == model and slot.pinned is None
            if not still or now is None or self._stopping.is_set():
                loaded.close()
                if now is None and still:
                    raise _Later(f"pipeline {pipeline} does not run")
                return
            # While another is on trial, the way back stays the one that has proved itself.
            before = slot.previous if slot.trial is not None and slot.previous is not None else None
            before = before or Installed(name=now.name, version=now.version)
            step = slots.begin_trial(
                pipeline, model, before, bay.watch.reference(), now_ns=self._around.wall_ns(), at=self._at()
            )
            try:
                self._journal.change(step)
            except JournalError:
                loaded.close()
                raise
            try:
                bay.exchange(loaded, keep_old=True)
            except InferenceError as error:
                # It is in the journal: the next run of the pipeline begins with the new release.
                log.warning("model_swap_waits", pipeline=pipeline, model=model.label, error=str(error))
            self._began[pipeline] = self._around.monotonic()
        self._around.metrics.outcome(pipeline, "swapped")
        reason = f"the patch could not be used: {cost.patch_failed}" if cost is not None and cost.patch_failed else ""
        self._say(pipeline, "trial", model, cost=cost, comparison=comparison, reason=reason)
        self._trial_wake.set()

    def _wants(self, pipeline: str, model: Installed) -> bool:
        """Tell whether it is still this release that is wanted: another may have been asked for meanwhile."""
        wanted = self._journal.book.slot(pipeline).wanted
        return wanted is not None and wanted.model == model

    def _refuse(self, pipeline: str, model: Installed, code: str, reason: str) -> None:
        if not self._wants(pipeline, model):
            return
        self._journal.insist(slots.refuse(pipeline, model, code, reason, self._at()))
        self._installer.forget(model.name, model.version)
        log.error("model_refused", pipeline=pipeline, model=model.label, code=code, reason=reason)
        self._around.note("model_refused", "error", f"pipeline {pipeline}, {model.label}: {reason}")
        self._around.metrics.outcome(pipeline, "refused")
        self._say(pipeline, "refused", model, code=code, reason=reason)
        self._collect()

    def _postpone(self, pipeline: str, model: Installed, error: OtaError) -> None:
        if not self._wants(pipeline, model):
            return
        pause = self._pauses.setdefault(pipeline, _Pause())
        pause.failures += 1
        if isinstance(error, KeyAwaitedError) and pause.failures <= 12:
            self._around.renew()
            delay = KEY_RETRY_SECONDS
        else:
            delay = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(pause.failures - 1, 20))
        pause.until = self._around.monotonic() + delay * (0.5 + 0.5 * self._around.draw())
        told = self._journal.book.slot(pipeline).told
        if told is None or (told.code, told.reason) != (error.code, str(error)):
            log.warning("model_update_waits", pipeline=pipeline, model=model.label, code=error.code, reason=str(error))
        # The list of the repository, or who stands between, may be another one the next time.
        phase: UpdatePhase = "refused" if isinstance(error, TrustError) else "waiting"
        self._say(pipeline, phase, model, code=error.code, reason=str(error))

    # ---- trial --------------------------------------------------------------------------------------

    def _judge(self, pipeline: str) -> None:
        bay = self._bays[pipeline]
        self._tell_gap(pipeline, bay)
        slot = self._journal.book.slot(pipeline)
        chosen = slots.running(slot)
        if chosen is not None and bay.serving is not None and not bay.serves(chosen.label):
            with bay.lock:  # as when it was taken back while the pipeline was loading it
                self._serve(pipeline, bay)
        self._around.metrics.on_trial(pipeline, is_on_trial=slot.trial is not None)
        if slot.trial is None or slot.active is None:
            return
        with bay.lock:
            slot = self._journal.book.slot(pipeline)
            trial, active = slot.trial, slot.active
            if trial is None or active is None or slot.pinned is not None:
                return
            seen = bay.watch.seen(
                active.name,
                active.version,
                seconds=self._around.monotonic() - self._began.get(pipeline, self._around.monotonic()),
                crashes=trial.crashes,
                stuck_seconds=bay.looking_seconds if bay.serves(active.label) else 0.0,
            )
            match judge(self._settings.trial, trial.reference, bay.latency_target_ms, seen):
                case TakeBack(code, reason):
                    self._take_back(pipeline, code, reason)
                case Proven():
                    self._prove(pipeline, bay, active, seen)
                case _:
                    pass

    def _prove(self, pipeline: str, bay: Bay, model: Installed, seen: Seen) -> None:
        self._journal.change(slots.prove(pipeline, self._at()))
        bay.let_go()
        log.info("model_proven", pipeline=pipeline, model=model.label, answers=seen.answers)
        self._around.note("model_proven", "info", f"pipeline {pipeline} keeps {model.label}")
        self._around.metrics.outcome(pipeline, "proven")
        self._say(pipeline, "running", model)
        self._collect()

    def _take_back(self, pipeline: str, code: str, reason: str) -> None:
        """Let the release before serve again, and then write that down: the disk may be what is in trouble.

        Whoever is killed between the two begins with the bad one, still on trial, and takes it back once more.
        """
        slot = self._journal.book.slot(pipeline)
        if slot.active is None:
            return
        self._journal.insist(slots.take_back(pipeline, code, reason, self._at()))
        log.error("model_reverted", pipeline=pipeline, model=slot.active.label, code=code, reason=reason)
        self._serve(pipeline, self._bays[pipeline])
        self._around.note("model_reverted", "error", f"pipeline {pipeline}, {slot.active.label}: {reason}")
        self._around.metrics.outcome(pipeline, "reverted")
        self._say(pipeline, "reverted", slot.active, code=code, reason=reason)

    def _serve(self, pipeline: str, bay: Bay) -> None:
        """Let the pipeline run what the journal says; one that does not run begins with it."""
        label = self._label(pipeline)
        if bay.serving is None or bay.serves(label):
            return
        try:
            bay.exchange(bay.load(label), keep_old=False)
        except (InferenceError, ModelError, BackendUnavailableError, WeightsWithheldError, VaultError) as error:
            log.error("model_swap_failed", pipeline=pipeline, model=label, error=str(error))
            bay.give_up(f"{label} cannot take over: {error}")

    def _tell_gap(self, pipeline: str, bay: Bay) -> None:
        """Complete what was said about a swap once the first answer has come."""
        ref = bay.serving
        told = self._journal.book.slot(pipeline).told
        if ref is None or told is None or told.swap_gap_ms is not None or told.model.version != ref.version:
            return
        gap_ms = bay.watch.gap_ms(ref)
        if gap_ms is not None and told.phase in ("trial", "running"):
            self._around.metrics.gap(pipeline, gap_ms / 1e3)
            self._journal.insist(slots.tell(msgspec.structs.replace(told, swap_gap_ms=gap_ms)))

    # ---- by hand ------------------------------------------------------------------------------------

    def _by_hand(self, pipeline: str, step: slots.Step, phase: UpdatePhase) -> None:
        bay = self._bays[pipeline]
        with bay.lock:
            slot = self._journal.change(step).slot(pipeline)
            self._serve(pipeline, bay)
        model = slots.running(slot) or _installed(bay.serving)
        log.info("model_by_hand", pipeline=pipeline, phase=phase, model=model.label if model else "")
        if model is not None:
            self._say(pipeline, phase, model, code="pinned" if phase == "pinned" else "")
        self._fetch_wake.set()

    def _roll_back(self, pipeline: str) -> None:
        bay = self._bays[pipeline]
        with bay.lock:
            self._take_back(pipeline, "by-hand", "a person on the device went back")

    def _require(self, pipeline: str) -> None:
        if pipeline not in self._bays:
            raise OtaError(f"there is no pipeline {pipeline!r}; there is {', '.join(sorted(self._bays)) or 'none'}")

    # ---- telling ------------------------------------------------------------------------------------

    def _say(
        self,
        pipeline: str,
        phase: UpdatePhase,
        model: Installed,
        *,
        code: str = "",
        reason: str = "",
        cost: Stored | None = None,
        full_bytes: int = 0,
        comparison: Mapping[str, float] | None = None,
    ) -> None:
        bay, slot = self._bays[pipeline], self._journal.book.slot(pipeline)
        before = slot.told if slot.told is not None and slot.told.model.version == model.version else None
        update = UpdateState(
            pipeline=pipeline,
            phase=phase,
            model=ModelRef(name=model.name, version=model.version),
            running_model=bay.serving,
            fencing_token=self._journal.book.fencing_token,
            at=self._at(),
            code=code,
            reason=reason,
            attempt=slot.wanted.attempt if slot.wanted is not None else before.attempt if before is not None else 0,
            fetched_bytes=cost.fetched_bytes if cost is not None else before.fetched_bytes if before is not None else 0,
            full_bytes=cost.full_bytes if cost is not None else full_bytes or (before.full_bytes if before else 0),
            comparison=dict(comparison) if comparison is not None else before.comparison if before is not None else {},
        )
        same = before is not None and msgspec.structs.replace(before, at=update.at, swap_gap_ms=None) == update
        if not same:
            self._journal.insist(slots.tell(update))
        self._write()
        self._trial_wake.set()

    def _report(self) -> None:
        twin = reported(self._journal.book, self._serving(), "", [*self._strangers.values()])
        if self._around.system is not None:
            twin = self._around.system.report(twin)
        payload = encode(twin)
        if payload != self._reported:
            self._reported = payload
            self._around.report(encode(msgspec.structs.replace(twin, at=self._at())))

    def _watch_repository(self) -> None:
        since_ns = self._repository.stale_since_ns
        if since_ns is not None and not self._stale_told:
            self._around.note(
                "update_stale", "warning", f"no fresh metadata of the repository since {rfc3339(since_ns)}"
            )
        elif since_ns is None and self._stale_told:
            self._around.note("update_fresh", "info", "the metadata of the repository are fresh again")
        self._stale_told = since_ns is not None

    def _collect(self) -> None:
        """Remove releases from the air that nobody needs any more."""
        book = self._journal.book
        keep = slots.kept(book, [ref for ref in self._serving().values() if ref is not None])
        gone = [each for each in book.installed if each not in keep]
        for model in gone:
            try:
                self._installer.remove(model.name, model.version)
            except VaultError as error:
                log.warning("ota_release_not_removed", model=model.label, error=str(error))
                return
            log.info("ota_release_removed", model=model.label)
        self._journal.insist(slots.removed(gone))
        self._write()

    def _label(self, pipeline: str) -> str:
        bay = self._bays[pipeline]
        label = slots.model_for(self._journal.book, pipeline, bay.settings.model, self._around.there())
        chosen = slots.running(self._journal.book.slot(pipeline))
        missing = chosen.label if chosen is not None and chosen.label != label else ""
        before, self._missing[pipeline] = self._missing.get(pipeline, ""), missing
        if missing and missing != before:
            log.error("ota_release_missing", pipeline=pipeline, model=missing, instead=label)
        elif before and not missing:
            log.info("ota_release_missing_no_more", pipeline=pipeline, model=before, runs=label)
        return label

    def _serving(self) -> dict[str, ModelRef | None]:
        return {name: bay.serving for name, bay in self._bays.items()}

    def _tried(self, work: Callable[[], None]) -> str:
        """Do something that needs the journal; return why that cannot be written, "" if it was."""
        try:
            work()
        except JournalError as error:
            return str(error)
        return ""

    def _write(self) -> bool:
        """Write what was insisted on; False if that must wait: it is tried again each second."""
        problem = self._tried(self._journal.flush)
        if problem:
            self._journal_fares("trial", problem)
        return not problem

    def _journal_fares(self, thread: str, problem: str) -> None:
        """Tell when the disk begins to refuse the journal, and when it takes it again."""
        before = any(self._journal_problems.values())
        self._journal_problems[thread] = problem
        now = any(self._journal_problems.values())
        if now and not before:
            log.error("ota_journal_not_written", error=problem, consequence="nothing is swapped in until it is")
            self._around.note("ota_journal_not_written", "error", problem)
        elif before and not now:
            log.info("ota_journal_written_again")
            self._around.note("ota_journal_written_again", "info", "the journal of updates is on the disk again")

    def _ask(self, request: Callable[[], None]) -> None:
        self._requests.append(request)
        self._trial_wake.set()

    def _at(self) -> str:
        return rfc3339(self._around.wall_ns())


def _without_system(twin: Twin) -> Twin:
    return msgspec.structs.replace(twin, assignments=[each for each in twin.assignments if each.kind != "os"])


class _Later(OtaError):
    """It could not be done now."""

    code = "later"


def check_pin(model: Installed, there: list[tuple[str, str]]) -> None:
    """Make sure that a release can be pinned. Raises OtaError if it is not on this device."""
    if (model.name, model.version) not in there:
        known = ", ".join(f"{name}@{version}" for name, version in there) or "none"
        raise OtaError(f"{model.label} is not on this device; there is {known}")


def check_rollback(book: Book, pipeline: str) -> None:
    """Make sure that there is a way back. Raises OtaError if there is none."""
    slot = book.slot(pipeline)
    if slot.active is None or slot.previous is None:
        raise OtaError(f"pipeline {pipeline} has no release to go back to: pin one with `gateway ota pin`")


def _installed(ref: ModelRef | None) -> Installed | None:
    return Installed(name=ref.name, version=ref.version) if ref is not None else None
