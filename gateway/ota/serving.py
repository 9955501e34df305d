"""Which release answers in each pipeline, how it does on trial, and the way back.

What is decided lies in pure code (`slots`, `trial`); the model of a pipeline is exchanged under the lock of its bay.
"""

from typing import Final

import msgspec
import structlog

from gateway.errors import (
    BackendUnavailableError,
    InferenceError,
    ModelAwaitedError,
    ModelError,
    PipelineBusyError,
    WeightsWithheldError,
)
from gateway.ota import slots
from gateway.ota.around import Means
from gateway.ota.bay import Bay
from gateway.ota.install import Stored
from gateway.ota.journal import Installed, MadeFor
from gateway.ota.telling import Telling
from gateway.ota.trial import Proven, Seen, TakeBack
from gateway.ota.trial import judge as judge_trial
from gateway.vault.errors import VaultError
from gateway.wire.messages import UpdatePhase

log = structlog.get_logger()

_BUSY_PAUSE_SECONDS: Final = 30.0


class Serving:
    """What the pipelines run. Methods may be called from any thread."""

    def __init__(self, means: Means, telling: Telling) -> None:
        """Take parts."""
        self._settings = means.settings
        self._journal = means.journal
        self._installer = means.installer
        self._around = means.around
        self._bays = means.bays
        self._telling = telling
        self._began: dict[str, float] = {}  # monotonic, of trials in this run of the program
        self._busy: dict[str, float] = {}  # monotonic, when a pipeline was found waiting for the outbox
        self._missing: dict[str, str] = {}  # what each pipeline should run and is not there
        self._awaiting: dict[str, bool] = {}  # whether each pipeline waits for a release, when that was last looked at

    def run_begins(self, pipeline: str) -> str:
        """Return the `name@version` that a pipeline is to load; counts a crash if the last run ended badly.

        A run that ended badly and cannot be counted, because the disk takes nothing, is one too many: who dies again
        and again would never come to the number that ends it.
        """
        bay = self._bays[pipeline]
        with bay.lock:
            self._put_aside_damaged(pipeline)
            before = self._journal.book.slot(pipeline).trial
            begins = slots.run_begins(pipeline, self._telling.at(), self._around.boot_id)
            slot = self._journal.insist(begins).slot(pipeline)
            counted = self._telling.write()
            if slot.trial is not None and slot.trial.bad_ends >= self._settings.trial.max_crashes:
                self.take_back(pipeline, "crash-loop", slot.trial.words)
            elif slot.trial is not None and before is not None and before.running and not counted:
                self.take_back(pipeline, "crash-loop", "a run under it ended badly, and the disk takes no count of it")
            self.begins(pipeline)
            label = self.label(pipeline)
            if slot.trial is not None and slot.active is not None and label != slot.active.label:
                self.run_ended(pipeline)  # another serves in this run, however that ends
            return label

    def run_ended(self, pipeline: str) -> None:
        """Note that a run of a pipeline ended for a reason that is not the model's."""
        self._journal.insist(slots.run_ended(pipeline))
        self._telling.write()

    def label(self, pipeline: str) -> str:
        """Return the `name@version` that a pipeline is to run; tells when that is another than it should be."""
        wished, label = self._wished(pipeline)
        slot = self._journal.book.slot(pipeline)
        chosen = slots.running(slot)
        missing = chosen.label if chosen is not None and chosen.label != label else ""
        before, self._missing[pipeline] = self._missing.get(pipeline, ""), missing
        if missing and missing != before and chosen is not None:
            if wished == missing:
                log.error("ota_release_withheld", pipeline=pipeline, model=missing, instead=label)
                reason = f"its content key is over or gone; {label} serves until it is here again"
                self._telling.say(pipeline, "waiting", chosen, code="key", reason=reason)
            else:
                log.error("ota_release_missing", pipeline=pipeline, model=missing, instead=label)
        elif before and not missing:
            log.info("ota_release_missing_no_more", pipeline=pipeline, model=before, runs=label)
            if chosen is not None and slot.told is not None and slot.told.code == "key":
                phase: UpdatePhase = "pinned" if slot.pinned else "trial" if slot.trial is not None else "running"
                self._telling.say(pipeline, phase, chosen)
        return label

    def _wished(self, pipeline: str) -> tuple[str, str]:
        """Return what the pipeline should run, and what it can: weights whose key is over are none while others are."""
        book, configured, there = self._journal.book, self._bays[pipeline].settings.model, self._around.there()
        wished = slots.model_for(book, pipeline, configured, there)
        if not self._withholds(wished):
            return wished, wished
        wanted = book.slot(pipeline).wanted  # it has to prove itself first
        proved = [each for each in there if wanted is None or each != (wanted.model.name, wanted.model.version)]
        usable = [each for each in proved if not self._installer.withholds(*each)]
        other = slots.model_for(book, pipeline, configured, usable)
        name, _, version = other.partition("@")
        return wished, other if (name, version) in usable else wished

    def _withholds(self, label: str) -> bool:
        name, _, version = label.partition("@")
        return bool(version) and self._installer.withholds(name, version)

    def stands_still(self, pipeline: str) -> Installed | None:
        """Return the release whose key a pipeline without a model waits for, where nothing else can run; else None."""
        if self._bays[pipeline].serving is not None:
            return None
        _, label = self._wished(pipeline)
        name, _, version = label.partition("@")
        return Installed(name=name, version=version) if self._withholds(label) else None

    def awaited(self, pipeline: str) -> ModelAwaitedError | None:
        """Say that a pipeline runs nothing, because no release that it may run is here; None if that is not so.

        Looks at the directories of models, which may lie on a medium that hangs.
        """
        bay = self._bays[pipeline]
        if bay.serving is not None:
            return None
        _, label = self._wished(pipeline)
        is_usable = slots.is_usable(self._journal.book, pipeline, label, self._around.there())
        self._awaiting[pipeline] = not is_usable
        return None if is_usable else _awaited(bay)

    def begin_anew(self, pipeline: str, bay: Bay) -> None:
        """Have a pipeline that does not run begin with what has come for it."""
        self._awaiting[pipeline] = False
        bay.beckon()

    def tell_who_waits(self) -> None:
        """Tell which pipelines wait for a release, as they found themselves: no disk may stop who judges the others."""
        waiting = frozenset(
            name for name, bay in self._bays.items() if self._awaiting.get(name) and bay.serving is None
        )
        for name in sorted(waiting - self._telling.awaiting):
            log.warning("pipeline_awaits_model", pipeline=name, model=self._bays[name].settings.model)
        for name in sorted(self._telling.awaiting - waiting):
            log.info("pipeline_awaits_model_no_more", pipeline=name)
        self._telling.awaiting = waiting

    def serve(self, pipeline: str, bay: Bay) -> None:
        """Let the pipeline run what the journal says; one that does not run begins with it, if it is here."""
        label = self.label(pipeline)
        # What is loaded goes on though it is gone from the disk; what was taken back does not, also where the
        # configuration names it.
        there = [*self._around.there(), _named(label)] if bay.serves(label) else self._around.there()
        is_usable = slots.is_usable(self._journal.book, pipeline, label, there)
        if bay.serving is None:
            self._awaiting[pipeline] = not is_usable
            bay.beckon()
        elif not is_usable:
            log.warning("pipeline_stands_down", pipeline=pipeline, model=label)
            self._awaiting[pipeline] = True
            bay.stand_down(_awaited(bay))
        elif bay.serves(label):
            self._busy.pop(pipeline, None)
        elif not self._is_busy(pipeline):
            self._exchange(pipeline, bay, label)

    def _exchange(self, pipeline: str, bay: Bay, label: str) -> None:
        try:
            bay.exchange(bay.load(label), keep_old=False)
            self._busy.pop(pipeline, None)
        except PipelineBusyError as error:  # it does not hang: it is not given up, and `judge` comes to it again
            if pipeline not in self._busy:
                log.warning("model_swap_waits", pipeline=pipeline, model=label, error=str(error))
            self._busy[pipeline] = self._around.monotonic()
        except (InferenceError, ModelError, BackendUnavailableError, WeightsWithheldError, VaultError) as error:
            if isinstance(error, WeightsWithheldError | VaultError) and self._missing.get(pipeline):
                return  # another serves instead, and goes on: the vault could not be asked a moment ago
            log.error("model_swap_failed", pipeline=pipeline, model=label, error=str(error))
            bay.give_up(f"{label} cannot take over: {error}")

    def _is_busy(self, pipeline: str) -> bool:
        """Tell whether the pipeline waited for the outbox a moment ago: a try takes seconds, which others wait for."""
        since = self._busy.get(pipeline)
        return since is not None and self._around.monotonic() - since < _BUSY_PAUSE_SECONDS

    def give_back(self, pipeline: str, bay: Bay, model: Installed) -> bool:
        """Return to a release that has proved itself here, as when a rollout is given up; no trial."""
        with bay.lock:
            slot = self._journal.book.slot(pipeline)
            if slot.previous == model and (model.name, model.version) in self._around.there():
                self._journal.change(slots.return_to_previous(pipeline, self._telling.at()))
                self.serve(pipeline, bay)
                self._telling.say(pipeline, "running", model)
                return True
            if slot.active in (None, model) and bay.serves(model.label):
                self._journal.change(slots.give_directly(pipeline, model, self._telling.at()))
                self._telling.say(pipeline, "running", model)
                return True
        return False

    def take_back(self, pipeline: str, code: str, reason: str) -> None:
        """Let the release before serve again, and then write that down: the disk may be what is in trouble.

        Whoever is killed between the two begins with the bad one, still on trial, and takes it back once more.
        """
        slot = self._journal.book.slot(pipeline)
        if slot.active is None:
            return
        self._journal.insist(slots.take_back(pipeline, code, reason, self._telling.at()))
        log.error("model_reverted", pipeline=pipeline, model=slot.active.label, code=code, reason=reason)
        self.serve(pipeline, self._bays[pipeline])
        self._around.note("model_reverted", "error", f"pipeline {pipeline}, {slot.active.label}: {reason}")
        self._around.metrics.outcome(pipeline, "reverted")
        self._telling.say(pipeline, "reverted", slot.active, code=code, reason=reason)

    def judge(self, pipeline: str) -> None:
        """Look at a pipeline: let it run what it is to run, and take back or keep what is on trial.

        Raises:
            JournalError: the disk does not take what was decided.
        """
        bay = self._bays[pipeline]
        if not bay.lock.acquire(blocking=False):
            return  # its model is being exchanged; the others need not wait for that
        try:
            self._judge(pipeline, bay)
        finally:
            bay.lock.release()

    def _judge(self, pipeline: str, bay: Bay) -> None:
        self._tell_gap(pipeline, bay)
        slot = self._journal.book.slot(pipeline)
        if self._serves_another(pipeline, bay):
            self.serve(pipeline, bay)  # as when it was taken back while the pipeline was loading it
        self._around.metrics.on_trial(pipeline, is_on_trial=slot.trial is not None)
        slot = self._journal.book.slot(pipeline)
        trial, active = slot.trial, slot.active
        if trial is None or active is None or slot.pinned is not None:
            return
        seen = bay.watch.seen(
            active.name,
            active.version,
            seconds=self._around.monotonic() - self._began.get(pipeline, self._around.monotonic()),
            crashes=trial.bad_ends,
            stuck_seconds=bay.looking_seconds if bay.serves(active.label) else 0.0,
        )
        made_for = MadeFor.of(bay.manifest) if bay.manifest is not None and bay.serves(active.label) else None
        match judge_trial(self._settings.trial, trial.reference, bay.latency_target_ms, seen, made_for):
            case TakeBack(code, reason):
                self.take_back(pipeline, code, reason)
            case Proven():
                self._prove(pipeline, bay, active, seen)
            case _:
                pass

    def _serves_another(self, pipeline: str, bay: Bay) -> bool:
        """Tell whether what answers is not what the journal says, or may not answer at all where that says nothing."""
        now = bay.serving
        if now is None:
            return False
        book = self._journal.book
        chosen = slots.running(book.slot(pipeline))
        if chosen is not None:
            return not bay.serves(chosen.label)
        return not slots.is_usable(book, pipeline, f"{now.name}@{now.version}", [(now.name, now.version)])

    def _prove(self, pipeline: str, bay: Bay, model: Installed, seen: Seen) -> None:
        self._journal.change(slots.prove(pipeline, self._telling.at()))
        bay.let_go()
        log.info("model_proven", pipeline=pipeline, model=model.label, answers=seen.answers)
        self._around.note("model_proven", "info", f"pipeline {pipeline} keeps {model.label}")
        self._around.metrics.outcome(pipeline, "proven")
        self._telling.say(pipeline, "running", model)
        self.collect()

    def _tell_gap(self, pipeline: str, bay: Bay) -> None:
        """Complete what was said about a swap once the first answer has come."""
        ref = bay.serving
        told = self._journal.book.slot(pipeline).told
        if ref is None or told is None or told.swap_gap_ms is not None:
            return
        if (told.model.name, told.model.version) != (ref.name, ref.version):
            return
        gap_ms = bay.watch.gap_ms(ref)
        if gap_ms is not None and told.phase in ("trial", "running"):
            self._around.metrics.gap(pipeline, gap_ms / 1e3)
            self._journal.insist(slots.tell(msgspec.structs.replace(told, swap_gap_ms=gap_ms)))

    def collect(self) -> None:
        """Remove releases from the air that nobody needs any more."""
        book = self._journal.book
        keep = slots.kept(book, [ref for ref in self._telling.serving().values() if ref is not None])
        keep |= {named for bay in self._bays.values() if (named := _configured(bay)) is not None}
        gone = [each for each in book.installed if each not in keep]
        for model in gone:
            try:
                self._installer.remove(model.name, model.version)
            except VaultError as error:
                log.warning("ota_release_not_removed", model=model.label, error=str(error))
                return
            log.info("ota_release_removed", model=model.label)
        self._journal.insist(slots.removed(gone))
        self._telling.write()

    def begins(self, pipeline: str) -> None:
        """Note that the time of a trial begins now."""
        self._began[pipeline] = self._around.monotonic()

    # ---- releases that are gone ---------------------------------------------------------------------

    def want_missing(self, pipeline: str) -> None:
        """Have a release fetched again that is active and not on the disk any more, as when it was damaged.

        Raises:
            JournalError: the disk does not take that.
        """
        book = self._journal.book
        slot = book.slot(pipeline)
        active = slot.active
        if active is None or self._missing.get(pipeline) != active.label or active not in book.installed:
            return
        if slot.wanted is not None or slot.pinned is not None or slot.is_blocked(active) is not None:
            return
        self._journal.change(slots.want_again(pipeline, self._telling.at()))
        log.warning("ota_release_wanted_again", pipeline=pipeline, model=active.label)

    def come_back(self, pipeline: str, bay: Bay, model: Installed, cost: Stored | None) -> None:
        """Let a release serve that was active, was gone and is there again: the same bytes, so nothing is to be proved.

        Raises:
            JournalError: the disk does not take that.
        """
        with bay.lock:
            slot = self._journal.change(slots.give_directly(pipeline, model, self._telling.at())).slot(pipeline)
            self.serve(pipeline, bay)
        self._telling.say(pipeline, "trial" if slot.trial is not None else "running", model, cost=cost)

    def _put_aside_damaged(self, pipeline: str) -> None:
        """Put aside what the pipeline is to run if it came over the air and is damaged: it is fetched again then."""
        book = self._journal.book
        chosen = slots.running(book.slot(pipeline))
        if chosen is None or chosen not in book.installed:
            return
        try:
            damage = self._installer.put_aside_damaged(chosen.name, chosen.version)
        except VaultError as error:
            log.warning("ota_release_not_looked_at", model=chosen.label, error=str(error))
            return
        if damage:
            words = f"{chosen.name} {chosen.version} was damaged on this device and must be fetched again"
            self._around.note("release_damaged", "warning", words)


def _named(label: str) -> tuple[str, str]:
    name, _, version = label.partition("@")
    return name, version


def _awaited(bay: Bay) -> ModelAwaitedError:
    return ModelAwaitedError(
        f"no release of {bay.settings.model} that may run is on this device: the pipeline waits until a rollout "
        "(`cloud-bridge rollout create`), or `gateway ota install`, brings one"
    )


def _configured(bay: Bay) -> Installed | None:
    """Return the release that the configuration names, None if it names no version."""
    name, _, version = bay.settings.model.partition("@")
    return Installed(name=name, version=version) if version else None
