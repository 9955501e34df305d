"""Brings what each pipeline is to run: looks at the repository, fetches, proves, compares and swaps in.

On a thread of its own, because over a thin link one release may take hours. Each step is in the journal before it is
taken; where the disk does not take that, nothing new is tried.
"""

import math
import threading
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from gateway.errors import BackendUnavailableError, InferenceError, ModelError, WeightsWithheldError
from gateway.inference.model import Model
from gateway.intake import same_source
from gateway.ota import slots
from gateway.ota.around import Means
from gateway.ota.bay import Bay
from gateway.ota.canary import CanaryError, CanaryStarvedError
from gateway.ota.errors import (
    BadReleaseError,
    BudgetError,
    BudgetSpentError,
    FetchError,
    FloorError,
    NoRootError,
    NotOfferedError,
    OtaError,
    StoppedError,
    TrustError,
    WrongHardwareError,
)
from gateway.ota.features import is_on
from gateway.ota.fetch_budget import reserve
from gateway.ota.footing import Footing
from gateway.ota.install import DamagedReleaseError, KeyAwaitedError, NothingForUsError, Plan, Stored
from gateway.ota.journal import Book, Installed, JournalError, Reference, Wanted
from gateway.ota.serving import Serving
from gateway.ota.shadow import Shadow
from gateway.ota.telling import Telling
from gateway.vault.errors import VaultError
from gateway.wire.manifest import ModelManifest
from gateway.wire.messages import ModelRef, UpdatePhase
from gateway.wire.times import rfc3339

log = structlog.get_logger()

FIRST_RETRY_SECONDS: Final = 10.0
MAX_RETRY_SECONDS: Final = 3600.0
KEY_RETRY_SECONDS: Final = 5.0
RENEWED_SPREAD_SECONDS: Final = 60.0
"""Over so long a fleet whose budgets are renewed at the same moment spreads what waited for that."""

_FINAL: Final = (CanaryError, NothingForUsError, DamagedReleaseError)
"""The same release would fail again: it is blocked."""

_NOT_FOR_A_PERSON: Final = (NotOfferedError, WrongHardwareError, BadReleaseError)
"""What the list says of the release itself. A bridge that assigned it may still put it there; a person asks again."""

MOST_STARVED: Final = 8
"""So often a release may find no room to be tried in before it is refused: hours, with the pauses between."""


@dataclass(slots=True)
class _Pause:
    """When a pipeline's update is tried again."""

    until: float = 0.0
    failures: int = 0
    spent_period: int | None = None  # the period of the link's budget that has too little left for it
    window: bool = False  # it was closed


class Bringing:
    """Carries out what is wanted. `fetch_round` belongs to one thread, everything else to any."""

    def __init__(
        self, means: Means, footing: Footing, telling: Telling, serving: Serving, stopping: threading.Event
    ) -> None:
        """Take parts; nothing is begun once `stopping` is set."""
        self._floor = means.floor
        self._footing = footing
        self._settings = means.settings
        self._journal = means.journal
        self._repository = means.repository
        self._installer = means.installer
        self._around = means.around
        self._bays = means.bays
        self._telling = telling
        self._serving = serving
        self._stopping = stopping
        self._pauses: dict[str, _Pause] = {}
        self._starved: Counter[tuple[str, str]] = Counter()  # by pipeline and release
        self._refresh_at = -math.inf  # on the monotonic clock
        self._refresh_failures = 0
        self._asked = False  # by somebody, for a refresh
        self._repository_problem = ""
        self.repository_words = ""  # the same for people
        self._stale_told = False

    @property
    def repository_problem(self) -> str:
        """The code of what is wrong with the repository, "" for nothing."""
        return self._repository_problem

    def refresh_soon(self) -> None:
        """Look at the repository in the next round, as somebody asks for it."""
        self._asked, self._refresh_at = True, -math.inf

    def try_again(self) -> None:
        """Wait for nothing in the next round: the way to the bridge is there again."""
        for pause in self._pauses.values():
            pause.until = 0.0
        if self._refresh_failures:
            self._refresh_at = -math.inf

    def forget_pauses(self) -> None:
        """Begin anew with what is wanted now."""
        for pipeline in self._bays:
            self._pauses.pop(pipeline, None)

    def fetch_round(self) -> None:
        """Try once to bring what each pipeline wants, where its time has come; refresh the metadata now and then.

        Nothing of that is done while the floor is refused.
        """
        if not self._footing.stands():
            return
        if not any(self._journal.book.slot(name).wanted is not None for name in self._bays):
            self._telling.journal_fares("fetch", "")
        for pipeline, bay in self._bays.items():
            slot = self._journal.book.slot(pipeline)
            pause = self._pauses.setdefault(pipeline, _Pause())
            if self._stopping.is_set():
                return
            if slot.wanted is None or slot.pinned is not None or self._waits_for_budget(pause):
                continue
            if self._around.monotonic() >= pause.until:
                problem = self._telling.tried(partial(self._update, pipeline, bay, slot.wanted.model))
                self._telling.journal_fares("fetch", problem)
                if problem:
                    pause.until = self._around.monotonic() + FIRST_RETRY_SECONDS
        if self._around.monotonic() >= self._refresh_at and not self._stopping.is_set():
            try:
                self._look_now_and_then()
            except OtaError as error:
                self._repository_failed(error)

    def _waits_for_budget(self, pause: _Pause) -> bool:
        """Tell whether an update waits for the next period of the budget, or for the window to open.

        Asking costs no bytes, unlike trying; and a window may be shorter than the pause between two tries.
        """
        if pause.spent_period is None and not pause.window:
            return False
        allowance = self._installer.allowance()
        if pause.spent_period is not None and allowance is not None and allowance.period == pause.spent_period:
            return True
        if pause.window and self._installer.waits_for_window():
            return True
        was_window, pause.spent_period, pause.window = pause.window, None, False
        # For all of a fleet it is renewed, or opens, at the same moment.
        spread = 0.0 if allowance is None and not was_window else RENEWED_SPREAD_SECONDS * self._around.draw()
        pause.until = self._around.monotonic() + spread
        return False

    def _look_now_and_then(self) -> None:
        """Refresh, unless that takes what is left of the link's budget for updates and nobody has asked for it."""
        allowance = self._installer.allowance()
        if not self._asked and allowance is not None and allowance.left_bytes < reserve(allowance):
            raise BudgetSpentError(
                f"the lists of the repository are not looked at before {rfc3339(allowance.renews_at_ns)}: the "
                f"{allowance.left_bytes} bytes that the link's budget has left are kept for updates"
            )
        self._refresh()

    def _refresh(self) -> None:
        # One that fails is asked again soon, and less and less often; drawn, so that a fleet does not come at once.
        self._asked = False
        failures, self._refresh_failures = self._refresh_failures, self._refresh_failures + 1
        every = min(self._settings.refresh_seconds, FIRST_RETRY_SECONDS * 2.0 ** min(failures, 20))
        self._refresh_at = self._around.monotonic() + every * (0.5 + 0.5 * self._around.draw())
        self._repository.refresh()
        self._refresh_failures = 0
        every = self._settings.refresh_seconds * (0.75 + 0.25 * self._around.draw())
        self._refresh_at = self._around.monotonic() + every
        if self._repository_problem:
            log.info("ota_repository_again")
        self._repository_problem = self.repository_words = ""

    def _repository_failed(self, error: OtaError) -> None:
        # What is wrong with the floor is told by whoever looks at it.
        if self._repository_problem != error.code and not isinstance(error, StoppedError | FloorError):
            if isinstance(error, NoRootError):
                log.error("ota_disabled", code=error.code, error=str(error), consequence="pipelines run what they have")
                self._around.note("ota_disabled", "error", str(error))
            else:
                log.warning("ota_repository_fails", code=error.code, error=str(error))
            if isinstance(error, TrustError):
                self._around.note("ota_untrusted", "error", str(error))
        self._repository_problem, self.repository_words = error.code, str(error)

    def watch_repository(self) -> None:
        """Say when the metadata of the repository become stale, and when they are fresh again."""
        since_ns = self._repository.stale_since_ns
        if since_ns is not None and not self._stale_told:
            log.warning("update_stale", since=rfc3339(since_ns))
            self._around.note(
                "update_stale", "warning", f"no fresh metadata of the repository since {rfc3339(since_ns)}"
            )
        elif since_ns is None and self._stale_told:
            log.info("update_fresh")
            self._around.note("update_fresh", "info", "the metadata of the repository are fresh again")
        self._stale_told = since_ns is not None

    def _update(self, pipeline: str, bay: Bay, model: Installed) -> None:
        """Carry out what is wanted, as far as that goes now."""
        try:
            if self._serving.give_back(pipeline, bay, model):
                return
            self._journal.change(slots.attempted(pipeline))
            self._bring(pipeline, bay, model)
            self._pauses.pop(pipeline, None)
        except StoppedError:
            if not self._wants(pipeline, model):
                self._forget_unwanted()
                self._serving.collect()  # it may have been stored before that was known
        except _FINAL as error:
            self._refuse(pipeline, model, error.code, str(error))
        except CanaryStarvedError as error:
            # The machine's fault, once or twice; what never fits is the release's, and each try may take others down.
            self._starved[pipeline, model.label] += 1
            if self._starved[pipeline, model.label] >= MOST_STARVED:
                self._refuse(pipeline, model, error.code, f"{error}; {MOST_STARVED} times in a row")
            else:
                self._postpone(pipeline, model, error)
        except OtaError as error:
            wish = self._journal.book.slot(pipeline).wanted
            if isinstance(error, _NOT_FOR_A_PERSON) and wish is not None and wish.model == model and wish.by_hand:
                self._give_up_wish(pipeline, wish, error)
                return
            if isinstance(error, TrustError):
                self._repository_failed(error)
            self._postpone(pipeline, model, error)
        except (ModelError, BackendUnavailableError) as error:
            self._refuse(pipeline, model, "golden", str(error))
        except (InferenceError, VaultError, WeightsWithheldError) as error:
            self._postpone(pipeline, model, _Later(str(error)))

    def _bring(self, pipeline: str, bay: Bay, model: Installed) -> None:
        try:
            self._refresh()
        except FetchError as error:
            # A person on a site without a cloud means what was imported; the list that is kept is verified anew.
            wanted = self._journal.book.slot(pipeline).wanted
            if isinstance(error, StoppedError) or wanted is None or not wanted.by_hand:
                raise
            self._repository_failed(error)
        offer = self._repository.offer(model.name, model.version)
        plan = self._installer.plan(offer, bay.settings)
        self._require_same_source(bay, offer.manifest)
        stored = self._installer.is_stored(plan)
        cost: Stored | None = None
        if stored is None:
            self._telling.say(pipeline, "fetching", model, full_bytes=plan.full.size_bytes)
            self._journal.change(slots.installed(model))
            cost = self._install(pipeline, model, plan)
            stored = cost.release
            # Whoever tidied up meanwhile found it unwanted, or not there yet; unnamed it would pass for our own.
            self._journal.change(slots.installed(model))
            self._around.metrics.fetched(cost.fetched_bytes, cost.full_bytes)
        self._floor.read()  # the TPM may have answered only for the key: a state that was put back ends here
        if self._journal.book.slot(pipeline).active == model:
            self._serving.come_back(pipeline, bay, model, cost)
            return
        if not self._wants(pipeline, model):
            raise StoppedError(f"{model.label} is not wanted any more")
        self._telling.say(pipeline, "checking", model, cost=cost)
        self._installer.prove(plan, stored, bay.settings)
        loaded = bay.load(model.label)
        comparison = self._compare(bay, loaded)
        self._swap_in(pipeline, bay, model, loaded, comparison=comparison, cost=cost)

    def _install(self, pipeline: str, model: Installed, plan: Plan) -> Stored:
        self._installer.require_budget(self._installer.bytes_to_fetch(plan), f"{model.name} {model.version} needs")
        self._forget_unwanted()
        told = [0.0]

        def progress(fetched: int) -> None:
            if not self._wants(pipeline, model):
                raise StoppedError(f"{model.label} is not wanted any more")
            now = self._around.monotonic()
            if now - told[0] >= 10.0:
                told[0] = now
                log.info("ota_fetching", pipeline=pipeline, model=model.label, fetched_bytes=fetched)

        return self._installer.install(plan, progress)

    def _forget_unwanted(self) -> None:
        """Throw away what was fetched for releases that no pipeline wants."""
        wanted = [each.wanted.model for each in self._journal.book.pipelines.values() if each.wanted is not None]
        self._installer.forget_others((each.name, each.version) for each in wanted)

    def _require_same_source(self, bay: Bay, manifest: ModelManifest) -> None:
        serving = bay.manifest
        if serving is not None and not same_source(serving.input, manifest.input):
            raise NothingForUsError(
                f"{manifest.name} {manifest.version} wants other samples than the source of its pipeline gives"
            )

    def _compare(self, bay: Bay, loaded: Model) -> dict[str, float]:
        wanted = self._settings.trial.shadow_samples
        serving = bay.manifest
        if not wanted or not is_on(self._journal.book.features, "shadow"):
            return {}
        if serving is None or serving.input != loaded.manifest.input:
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
            still = slot.wanted is not None and slot.wanted.model == model and slot.pinned is None
            # A pipeline that waits for the key of what it has would never run, and the update would wait for it.
            now = bay.serving or self._serving.stands_still(pipeline)
            is_away = now is None and self._serving.awaited(pipeline) is None
            if not still or is_away or self._stopping.is_set():
                loaded.close()
                if is_away and still:
                    raise _Later(f"pipeline {pipeline} does not run")
                if not self._wants(pipeline, model):
                    self._serving.collect()
                return
            is_running = bay.serving is not None
            before = _way_back(self._journal.book, pipeline, now, model)
            step = slots.begin_trial(
                pipeline,
                model,
                before,
                # What a first release did that was taken back, or is on trial itself, is no measure.
                bay.watch.reference(bay.manifest) if before is not None else Reference(),
                now_ns=self._around.wall_ns(),
                at=self._telling.at(),
                boot_id=self._around.boot_id,
                is_running=is_running,
            )
            try:
                self._journal.change(step)
            except JournalError:
                loaded.close()
                raise
            if is_running:
                try:
                    bay.exchange(loaded, keep_old=True)
                except InferenceError as error:
                    # It is in the journal: the next run of the pipeline begins with the new release.
                    log.warning("model_swap_waits", pipeline=pipeline, model=model.label, error=str(error))
            else:  # it has shown that it can be loaded; the run loads it on its own thread
                loaded.close()
                self._serving.begin_anew(pipeline, bay)
            self._serving.begins(pipeline)
        self._around.metrics.outcome(pipeline, "swapped")
        reason = f"the patch could not be used: {cost.patch_failed}" if cost is not None and cost.patch_failed else ""
        self._telling.say(pipeline, "trial", model, cost=cost, comparison=comparison, reason=reason)

    def _wants(self, pipeline: str, model: Installed) -> bool:
        """Tell whether it is still this release that is wanted: another may have been asked for meanwhile."""
        wanted = self._journal.book.slot(pipeline).wanted
        return wanted is not None and wanted.model == model

    def _refuse(self, pipeline: str, model: Installed, code: str, reason: str) -> None:
        if not self._wants(pipeline, model):
            return
        self._journal.insist(slots.refuse(pipeline, model, code, reason, self._telling.at()))
        self._installer.forget(model.name, model.version)
        log.error("model_refused", pipeline=pipeline, model=model.label, code=code, reason=reason)
        self._around.note("model_refused", "error", f"pipeline {pipeline}, {model.label}: {reason}")
        self._around.metrics.outcome(pipeline, "refused")
        self._telling.say(pipeline, "refused", model, code=code, reason=reason)
        self._serving.collect()

    def _give_up_wish(self, pipeline: str, wish: Wanted, error: OtaError) -> None:
        label = wish.model.label
        log.warning("model_not_to_be_had", pipeline=pipeline, model=label, code=error.code, reason=str(error))
        self._pauses.pop(pipeline, None)
        self._journal.change(slots.withdraw(pipeline, self._telling.at(), code=error.code, detail=str(error), of=wish))

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
        allowance = self._installer.allowance() if isinstance(error, BudgetSpentError) else None
        pause.spent_period = allowance.period if allowance is not None else None
        pause.window = isinstance(error, BudgetError) and self._installer.waits_for_window()
        # The list of the repository, or who stands between, may be another one the next time.
        phase: UpdatePhase = "refused" if isinstance(error, TrustError) else "waiting"
        with self._bays[pipeline].lock:
            slot = self._journal.book.slot(pipeline)
            if slot.pinned is not None:
                return  # a person has said the last word meanwhile
            if slot.told is None or (slot.told.code, slot.told.reason) != (error.code, str(error)):
                log.warning(
                    "model_update_waits", pipeline=pipeline, model=model.label, code=error.code, reason=str(error)
                )
            self._telling.say(pipeline, phase, model, code=error.code, reason=str(error))


def _way_back(book: Book, pipeline: str, now: ModelRef | Installed | None, model: Installed) -> Installed | None:
    """Return what a release is given up for: never itself, nor one that is on trial; None where nothing else is.

    What answers now may be what it must not be: one that was taken back, while its pipeline waits for the outbox. And
    what waits for its key may never have been proved. What should run instead is the way back then.
    """
    slot = book.slot(pipeline)
    if slot.trial is not None:
        return slot.previous if slot.previous != model else None
    if now is None:
        return None
    before = Installed(name=now.name, version=now.version)
    is_good = before != model and slot.is_blocked(before) is None
    is_good = is_good and slots.is_usable(book, pipeline, before.label, [(now.name, now.version)])
    return before if is_good else slot.active


class _Later(OtaError):
    """It could not be done now."""

    code = "later"
