"""`gateway ota`: which releases came over the air, what became of them, and how a person decides otherwise."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click
import msgspec

from gateway import logs
from gateway.commands.options import Number, config_option, json_option
from gateway.commands.ota_fetch import (
    import_command,
    key_remedy,
    offered_command,
    refresh_command,
    repository_here,
    waits_for_key,
)
from gateway.commands.output import print_json, print_table, say
from gateway.config import Config
from gateway.configload import InvalidConfigError, read
from gateway.control import ask, socket_path
from gateway.doctor.models import sealed_directory
from gateway.errors import ControlClosedError, ControlError
from gateway.inference.bundle import ReleaseStore
from gateway.ota import slots
from gateway.ota.agent import OtaStatus, check_install, check_pin, check_rollback
from gateway.ota.effective import awaiting_pipelines, effective_models
from gateway.ota.errors import OtaError
from gateway.ota.floor import floor_for
from gateway.ota.floor_file import FloorStatus
from gateway.ota.install import KeyAwaitedError
from gateway.ota.journal import Installed, Journal, Slot, installed_from, look
from gateway.owner import become_owner
from gateway.statedir import locked_state
from gateway.vault.errors import VaultError
from gateway.wire.messages import ModelRef, UpdateState
from gateway.wire.times import rfc3339

_CARRIED_OUT_SECONDS: Final = 30.0


@click.group("ota")
def command() -> None:
    """Models over the air: what runs, what was tried, and how to go back or to keep a release."""


@command.command("status")
@config_option
@json_option
def status(config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell what each pipeline runs, is to run, and runs instead if that does not prove itself."""
    answer = _status(_config(config_file))
    if as_json:
        print_json(answer)
        return
    if not answer.running:
        say("no gateway is running; this is what its journal says")
    if answer.damage:
        say(answer.damage)
    if answer.journal_problem:
        say(f"journal: {answer.journal_problem}")
    if answer.repository_problem:
        say(f"repository: {answer.repository_problem}: {answer.repository_words}")
    if answer.stale_since is not None:
        say(f"no fresh metadata since {answer.stale_since}")
    say(_floor(answer.floor))
    print_table(
        ("PIPELINE", "RUNS", "STATE", "WANTED", "WAY BACK", "REASON"),
        [(name, *_row(name, slot, answer)) for name, slot in sorted(answer.pipelines.items())],
    )


@command.command("history")
@config_option
@json_option
def history(config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell what was tried, the oldest first, and what is blocked."""
    answer = _status(_config(config_file))
    if as_json:
        print_json(answer.history)
        return
    print_table(
        ("AT", "PIPELINE", "WHAT", "MODEL", "WHY"),
        [
            (each.at, each.pipeline, each.what, each.model, " ".join(filter(None, (each.code, each.detail))))
            for each in answer.history
        ],
    )


@command.command("rollback")
@click.argument("pipeline", required=False)
@config_option
def rollback(pipeline: str | None, config_file: Path) -> None:
    """Let a PIPELINE run the release before, and block the present one. Needs no name where there is one pipeline."""
    config = _config(config_file)
    name = _only(config) if pipeline is None else pipeline

    def offline(journal: Journal) -> None:
        check_rollback(journal.book, name)
        journal.change(slots.take_back_and_tell(name, "by-hand", "a person on the device went back", _now()))

    before = _status(config).pipelines.get(name, Slot()).active
    _carry_out(config, "ota-rollback", {"pipeline": name}, offline=offline, done=lambda slot: slot.active != before)


@command.command("install")
@click.argument("pipeline")
@click.argument("model")
@click.option("--wait", "seconds", type=Number(0), default=600.0, show_default=True, help="At most so long.")
@click.option("--again", is_flag=True, help="Also if it was given up there: it is tried once more.")
@config_option
def install(pipeline: str, model: str, seconds: float, again: bool, config_file: Path) -> None:  # noqa: FBT001 - as click
    """Have a PIPELINE try a MODEL@VERSION of the signed list, as if the bridge had assigned it.

    For a device without a cloud, after `gateway ota import` and, for its key, `gateway vault import` of what
    `cloud-bridge model extract` has written. It is proved and taken back like any other; what the bridge assigns next
    counts again.
    """
    config = _config(config_file)
    wanted = installed_from(model)
    _known_pipeline(config, pipeline)
    _require_listed(config, wanted)
    if not _is_running(config):
        become_owner(config.gateway.state_directory)
        with locked_state(config.gateway.state_directory):
            journal = _journal_here(config)
            check_install(journal.book.slot(pipeline), pipeline, wanted, again=again)
            token = journal.book.fencing_token
            accepted = slots.accept(pipeline, wanted, token, _now(), by_hand=True)
            journal.change(lambda book: accepted(slots.unblock(pipeline, wanted)(book)))
        say("no gateway is running: its next start begins with that")
        return
    before = _status(config).pipelines.get(pipeline, Slot()).told
    arguments = {"pipeline": pipeline, "model": model} | ({"again": "yes"} if again else {})
    ask(socket_path(config.gateway), "ota-install", arguments)
    _follow(config, pipeline, wanted, before, seconds)


def _require_listed(config: Config, model: Installed) -> None:
    """Make sure that a release is in the signed list as it is kept here, and that its key is here or may come.

    Raises:
        OtaError: it is not in the list, or for other hardware.
        KeyAwaitedError: there is no key, and no bridge that would grant it.
    """
    assert config.ota is not None  # looked at by `_config`
    repository = repository_here(config, config.ota)
    found = next(
        (each for each in repository.listed() if (each.name, each.version) == (model.name, model.version)), None
    )
    if found is None:
        raise OtaError(
            f"{model.label} is not in the signed list as it is kept here (`gateway ota offered`); "
            "`gateway ota refresh` asks for a newer list, `gateway ota import` brings one"
        )
    repository.require_hardware(found)
    if waits_for_key(config, repository.digest(model.name, model.version)):
        words = f"the key of {model.label} is not on this device: {key_remedy(config)}"
        if config.identity is None:
            raise KeyAwaitedError(words)
        say(words)


def _follow(config: Config, pipeline: str, wanted: Installed, before: UpdateState | None, seconds: float) -> None:
    """Say how an update goes on until it has ended."""
    said, last, was_wanted = before, "", False
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        slot = _status(config).pipelines.get(pipeline, Slot())
        told = slot.told
        if told is not None and told != said and _installed_of(told.model) == wanted:
            words = f"{wanted.label}: {told.phase}{f', {told.reason}' if told.reason else ''}"
            if words != last:  # each try says it anew
                say(words)
            said, last = told, words
        ends = slot.active == wanted and slot.trial is None
        if ends:
            say(f"pipeline {pipeline} runs {wanted.label}")
            return
        if (blocked := slot.is_blocked(wanted)) is not None:
            raise OtaError(f"{wanted.label} was given up: {blocked.reason}")
        is_wanted = slot.wanted is not None and slot.wanted.model == wanted
        if was_wanted and not is_wanted and slot.active != wanted:
            raise OtaError(f"{wanted.label} is not wanted any more: see `gateway ota history`")
        was_wanted = was_wanted or is_wanted
        time.sleep(0.2)
    if not seconds:
        return
    raise OtaError(f"{wanted.label} does not run after {seconds:g} s; it goes on: see `gateway ota status`")


@command.command("pin")
@click.argument("pipeline")
@click.argument("model")
@config_option
def pin(pipeline: str, model: str, config_file: Path) -> None:
    """Have a PIPELINE keep a MODEL@VERSION that is on this device, whatever the cloud assigns."""
    config = _config(config_file)
    wanted = installed_from(model)

    def offline(journal: Journal) -> None:
        check_pin(wanted, [(each.name, each.version) for each in _store(config).releases()])
        journal.change(slots.pin(pipeline, wanted, _now()))

    arguments = {"pipeline": pipeline, "model": model}
    _carry_out(config, "ota-pin", arguments, offline=offline, done=lambda slot: slot.pinned == wanted)


@command.command("unpin")
@click.argument("pipeline")
@config_option
def unpin(pipeline: str, config_file: Path) -> None:
    """Let assignments count again for a PIPELINE."""
    config = _config(config_file)

    def offline(journal: Journal) -> None:
        journal.change(slots.unpin(pipeline, _now()))

    _carry_out(config, "ota-unpin", {"pipeline": pipeline}, offline=offline, done=lambda slot: slot.pinned is None)


for _each in (import_command, refresh_command, offered_command):
    command.add_command(_each)


def _carry_out(
    config: Config,
    request: str,
    arguments: Mapping[str, str],
    *,
    offline: Callable[[Journal], None],
    done: Callable[[Slot], bool],
) -> None:
    """Have the running gateway do something and wait until it has; without one, write it down for its next start.

    What is written in the journal is done; the release that answers is exchanged a moment later, which is waited for.
    """
    pipeline = arguments["pipeline"]
    _known_pipeline(config, pipeline)
    path = socket_path(config.gateway)
    if not _is_running(config):
        become_owner(config.gateway.state_directory)  # a journal of root's the next gateway could not read
        with locked_state(config.gateway.state_directory):
            offline(_journal_here(config))
        say("no gateway is running: its next start begins with that")
        return
    ask(path, request, arguments)
    late = problem = ""
    deadline = time.monotonic() + _CARRIED_OUT_SECONDS
    while time.monotonic() < deadline:
        answer = _status(config)
        problem = answer.journal_problem
        serving = answer.serving.get(pipeline)
        is_done = done(answer.pipelines.get(pipeline, Slot()))
        if is_done and serving is None:
            say("done")
            return
        if is_done and serving is not None:
            runs = _installed_of(serving).label
            wished = effective_models(config, _store(config))[pipeline]
            if runs == wished:
                say(f"pipeline {pipeline} runs {runs}")
                return
            late = f"done; pipeline {pipeline} still runs {runs}, and is to run {wished}: see `gateway ota status`"
        time.sleep(0.1)
    if late:
        say(late)
        return
    if problem:
        raise OtaError(
            f"not carried out within {_CARRIED_OUT_SECONDS:g} s: {problem}. It is carried out as soon as the journal "
            "can be written, unless the gateway is stopped before"
        )
    raise OtaError(f"not carried out within {_CARRIED_OUT_SECONDS:g} s: see `gateway ota status`")


def _journal_here(config: Config) -> Journal:
    """Open the journal of a gateway that does not run.

    Raises:
        OtaError: it is damaged or gone. What its releases have proved is for the gateway to find out, and it tells
            everybody about the damage, which a new journal of ours would hide.
    """
    if damage := look(config.gateway.state_directory).damage:
        raise OtaError(f"{damage}; start the gateway once, then ask again")
    return Journal(config.gateway.state_directory)


def _known_pipeline(config: Config, pipeline: str) -> None:
    """Make sure that a pipeline is configured. Raises OtaError if it is not."""
    if pipeline not in config.pipelines:
        raise OtaError(f"there is no pipeline {pipeline!r}; there is {', '.join(config.pipelines)}")


def _installed_of(ref: ModelRef) -> Installed:
    """Return the release that is meant, without its digest."""
    return Installed(name=ref.name, version=ref.version)


def _row(name: str, slot: Slot, answer: OtaStatus) -> tuple[str, ...]:
    told = slot.told
    serving = answer.serving.get(name)
    runs = f"{serving.name}@{serving.version}" if serving is not None else "-"
    state: str = "pinned" if slot.pinned else "trial" if slot.trial else told.phase if told else "configured"
    if name in answer.awaiting and slot.wanted is None:
        state = "waits for a release"
    elif serving is None and answer.running and name not in answer.awaiting:
        state = "stands still"  # `gateway status` says why
    elif serving is None and slot.active is not None:
        runs = slot.active.label
    return (
        runs,
        state,
        slot.wanted.model.label if slot.wanted is not None else "-",
        slot.previous.label if slot.previous is not None else "-",
        told.reason if told is not None else "",
    )


def _floor(floor: FloorStatus) -> str:
    """Say where the floor of updates lives."""
    match floor.place:
        case "tpm":
            return f"floor of updates: in the TPM, counter {floor.counter_index or 0:#x} at {floor.number}"
        case "refused":
            return f"floor of updates: refused ({floor.code}), nothing is installed: {floor.problem}"
        case _:
            return f"floor of updates: a file alone: {floor.problem}"


def _floor_here(config: Config) -> FloorStatus:
    """Look at the floor without a running gateway; changes nothing."""
    try:
        state, has_identity = config.gateway.state_directory, config.identity is not None
        return floor_for(config.vault, state, has_identity=has_identity).look()
    except VaultError as error:
        return FloorStatus(problem=str(error))


def _status(config: Config) -> OtaStatus:
    """Ask the running gateway, or read its journal."""
    if _is_running(config):
        return msgspec.convert(ask(socket_path(config.gateway), "ota"), OtaStatus)
    book, damage = look(config.gateway.state_directory)
    return OtaStatus(
        running=False,
        fencing_token=book.fencing_token,
        twin_version=book.twin_version,
        features=book.features,
        pipelines={name: book.slot(name) for name in config.pipelines},
        awaiting=tuple(sorted(awaiting_pipelines(config, _store(config)))),
        damage=damage,
        floor=_floor_here(config),
        history=book.history,
    )


def _is_running(config: Config) -> bool:
    try:
        ask(socket_path(config.gateway), "status")
    except ControlClosedError:
        raise
    except ControlError:
        return False
    return True


def _store(config: Config) -> ReleaseStore:
    return ReleaseStore(config.models.directories, sealed=sealed_directory(config))


def _only(config: Config) -> str:
    names = [*config.pipelines]
    if len(names) != 1:
        raise OtaError(f"say which pipeline: {', '.join(names)}")
    return names[0]


def _config(file: Path) -> Config:
    reading = read(file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(file), reading.errors)
    if reading.config.ota is None:
        raise OtaError(f"{file} has no section `ota`: releases of this gateway come from directories alone")
    logs.configure_for_command(reading.config.log)
    return reading.config


def _now() -> str:
    return rfc3339(time.time_ns())
