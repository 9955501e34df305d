"""`gateway os`: which system runs, what was tried, and installing a bundle by hand."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from gateway.commands.options import config_option, json_option
from gateway.commands.output import print_json, print_table, say, size
from gateway.config import Config
from gateway.configload import InvalidConfigError, read
from gateway.control import ask, socket_path
from gateway.errors import ControlError
from gateway.osupdate import journal as steps
from gateway.osupdate.agent import OsStatus, require_cancellable
from gateway.osupdate.errors import OnTrialError, OsJournalError, OsUpdateError
from gateway.osupdate.journal import Book, Job, Journal, read_book
from gateway.osupdate.levers import RequestedLevers, carry_out
from gateway.osupdate.rauc import RaucCli, SystemStatus
from gateway.osupdate.release import BundleFacts, read_release, require_installable
from gateway.osupdate.slotwatch import system_state
from gateway.osupdate.surroundings import boot_id
from gateway.osupdate.versions import version_key
from gateway.owner import as_owner
from gateway.statedir import locked_state
from gateway.wire.times import rfc3339

_RESTART: Final = ("systemctl", "reboot")
_CANCEL_SECONDS: Final = 60.0


@click.group("os")
def command() -> None:
    """The system of the appliance: what runs, what was tried, install a bundle."""


@command.command("status")
@config_option
@json_option
def status(config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell which system runs, what is under way, and what the other slot has."""
    answer = _status(_config(config_file))
    if as_json:
        print_json(answer)
        return
    for line in _lines(answer):
        say(line)


@command.command("history")
@config_option
@json_option
def history(config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell what was tried, the oldest first, and which versions are blocked."""
    answer = _status(_config(config_file))
    if as_json:
        print_json({"history": answer.history, "blocked": answer.blocked})
        return
    print_table(
        ("AT", "WHAT", "VERSION", "WHY"),
        [
            (each.at, each.what, each.version, " ".join(filter(None, (each.code, each.detail))))
            for each in answer.history
        ],
    )
    for each in answer.blocked:
        say(f"blocked: {each.version} since {each.at}: {each.code}: {each.reason}")


@command.command("check")
@click.argument("bundle", required=False)
@config_option
@json_option
def check(bundle: str | None, config_file: Path, as_json: bool) -> None:  # noqa: FBT001
    """Tell whether a BUNDLE could be installed here; without one, what the repository has for this device."""
    config = _config(config_file)
    found: list[dict[str, Any]]
    if bundle is not None:
        facts, _, _ = _judged(config, bundle)
        found = [{"compatible": facts.compatible, "version": facts.version, "floor": facts.floor, "installable": True}]
    else:
        found = _offered(config)
    if as_json:
        print_json(found)
        return
    if not found:
        say("the repository has no image for this device; `gateway ota refresh` looks anew")
    for each in found:
        cost = f", {size(each['size_bytes'])}" if "size_bytes" in each else ""
        state = "can be installed" if each["installable"] else each["reason"]
        say(f"{each['compatible']} {each['version']}{cost}: {state}")


@command.command("install")
@click.argument("bundle", metavar="BUNDLE_OR_URL")
@click.option("--wait/--no-wait", default=True, help="Return when it is installed, or refused; default: wait.")
@config_option
def install(bundle: str, wait: bool, config_file: Path) -> None:  # noqa: FBT001
    """Install a bundle from a file, such as on a USB stick, or from an address.

    It must be signed for this device, and not below its floor. The running gateway installs it and restarts the device
    when a window of os.windows is open. A version that was blocked is tried again.
    """
    config = _config(config_file)
    source = bundle if "://" in bundle else str(Path(bundle).absolute())
    facts, now, rauc = _judged(config, source)
    if not _is_running(config):
        _install_here(
            config, Job(compatible=facts.compatible, version=facts.version, origin="person", source=source), rauc, now
        )
        return
    arguments = {"source": source, "compatible": facts.compatible, "version": facts.version}
    ask(socket_path(config.gateway), "os-install", arguments)
    say(f"version {facts.version} is being installed; see `gateway os status`")
    if wait:
        _follow(config, facts.version)


@command.command("cancel")
@config_option
def cancel(config_file: Path) -> None:
    """Take back an installation that was begun here, by hand or from a stick, before the device restarts for it.

    What runs now is started again next. What the bridge has assigned is taken back at the bridge.
    """
    config = _config(config_file)
    if not _is_running(config):
        _cancel_here(config)
        return
    job = _status(config).job
    ask(socket_path(config.gateway), "os-cancel")
    deadline = time.monotonic() + _CANCEL_SECONDS
    while time.monotonic() < deadline:
        now = _status(config).job
        if job is None or now is None or (now.origin, now.source, now.since) != (job.origin, job.source, job.since):
            say(f"version {job.version} is not installed any more" if job is not None else "taken back")
            return
        time.sleep(0.2)
    raise OsUpdateError(
        f"not taken back within {_CANCEL_SECONDS:g} s; the gateway goes on trying, see `gateway os status`"
    )


@command.command("carry-out", hidden=True)
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--rauc", default="rauc")
@click.option("--restart", default=" ".join(_RESTART))
def carry_out_command(directory: Path, rauc: str, restart: str) -> None:
    """Do as root what the gateway has asked for: restart, or choose the slot that is started next."""
    done = carry_out(directory, rauc=rauc.split(), restart=restart.split())
    say(done or "nothing was asked for")


@command.command("restart")
@config_option
def restart(config_file: Path) -> None:
    """Restart into what is installed now, whatever the windows say."""
    config = _config(config_file)
    job = read_book(config.gateway.state_directory).job
    if job is None or job.stage not in ("installed", "restarting"):
        raise OsUpdateError("nothing is installed that waits for a restart; see `gateway os status`")
    RequestedLevers(_runtime(config), number=lambda: secrets.token_hex(8)).pull("restart")
    say(f"the device restarts into version {job.version}")


# ---- inside ----------------------------------------------------------------------------------------------


def _judged(config: Config, source: str) -> tuple[BundleFacts, SystemStatus, RaucCli]:
    rauc = RaucCli(config.os.rauc)
    facts, now = rauc.info(source), rauc.status()
    require_installable(facts, read_release(config.os.release_file), compatible=now.compatible, counter=None)
    return facts, now, rauc


def _install_here(config: Config, job: Job, rauc: RaucCli, now: SystemStatus) -> None:
    """Install without a gateway; its next start goes on from there."""
    if now.running is not None and now.running.good is False:
        raise OnTrialError(
            f"slot {now.booted} has not been marked good, and the other one is needed if it fails; "
            "restart the device, or `rauc status mark-good booted` if it works"
        )
    with _journal_here(config) as change:
        change(steps.begin(job, _at()))
        running = next((slot.version for slot in now.slots if slot.booted), "")
        other = now.other.bootname if now.other is not None else ""
        there = {"from_version": running, "from_slot": now.booted, "to_slot": other}
        change(steps.reach("installing", boot_id(), _at(), **there))
        rauc.install(job.source, lambda percent, words: say(f"{percent:3} % {words}"))
        change(steps.reach("installed", boot_id(), _at(), "installed"))
    say(f"version {job.version} is installed in slot {other}; restart the device to run it")


def _cancel_here(config: Config) -> None:
    """Take back without a gateway what was installed without one."""
    with _journal_here(config) as change:
        job = change(lambda book: book).job
        require_cancellable(job)
        assert job is not None
        if job.stage in ("installing", "installed", "restarting"):
            RaucCli(config.os.rauc).keep_running()
        change(steps.end("withdrawn", _at()))
    say(f"version {job.version} is not installed any more; what runs now is started again next")


@contextmanager
def _journal_here(config: Config) -> Iterator[Callable[[steps.Step], Book]]:
    """Keep gateways away, and give what changes the journal: as its owner, who reads it at the next start.

    RAUC is asked by whoever runs the command: on an appliance that is root.
    """
    state = config.gateway.state_directory
    with as_owner(state):
        lock = locked_state(state)
    with lock:
        with as_owner(state):
            journal = Journal(state)

        def change(step: steps.Step) -> Book:
            with as_owner(state):
                return journal.change(step)

        yield change


def _follow(config: Config, version: str) -> None:
    """Tell how it goes until it is installed or over."""
    said = ""
    while True:
        answer = _status(config)
        told = answer.told
        if told is not None and told.model.version == version:
            words = ": ".join(filter(None, (told.phase, told.code, told.reason)))
            if words != said:
                say(words)
                said = words
            if told.phase in ("refused", "reverted", "blocked"):
                raise OsUpdateError(told.reason or told.phase)
        if answer.job is not None and answer.job.version == version and answer.job.stage in ("installed", "restarting"):
            say(f"version {version} is installed in slot {answer.job.to_slot}; the device restarts by itself")
            return
        if not answer.running:
            return  # the restart has begun
        time.sleep(0.5)


def _offered(config: Config) -> list[dict[str, Any]]:
    from gateway.commands.ota_fetch import repository_here  # noqa: PLC0415  # TUF: only where it is asked for
    from gateway.osupdate.offer import says_of  # noqa: PLC0415

    if config.ota is None:
        raise OsUpdateError("the configuration has no `ota`: images come from files alone, `gateway os check FILE`")
    release, now = read_release(config.os.release_file), RaucCli(config.os.rauc).status()
    found: list[dict[str, Any]] = []
    for file in repository_here(config, config.ota).targets(f"os/{now.compatible}/"):
        says = says_of(file)
        reason = "runs now" if release is not None and release.version == says.version else ""
        try:
            require_installable(says.facts, release, compatible=now.compatible, counter=None)
        except OsUpdateError as error:
            reason = str(error)
        found.append(
            {
                "compatible": says.compatible,
                "version": says.version,
                "floor": says.floor,
                "size_bytes": file.size_bytes,
                "installable": not reason,
                "reason": reason,
            }
        )
    return sorted(found, key=lambda each: version_key(str(each["version"])))


def _status(config: Config) -> OsStatus:
    """Ask the running gateway, or read its journal and ask RAUC. Writes nothing."""
    path, problems = socket_path(config.gateway), []
    try:
        return msgspec.convert(ask(path, "os"), OsStatus)
    except ControlError as error:
        if _is_running(config):
            raise OsUpdateError(f"the running gateway does not update its system (os.enabled): {error}") from error
        if isinstance(error.__cause__, PermissionError):
            problems.append(str(error))
    book, damage = Book(), ""
    try:
        book = read_book(config.gateway.state_directory)
    except OsJournalError as error:
        damage = str(error)
    now: SystemStatus | None = None
    try:
        now = RaucCli(config.os.rauc).status()
    except OsUpdateError as error:
        problems.append(str(error))
    return OsStatus(
        running=False,
        system=system_state(read_release(config.os.release_file), now, book),
        job=book.job,
        told=book.told,
        problem="; ".join(problems),
        damage=damage,
        offered=book.offered,
        blocked=book.blocked,
        history=book.history,
    )


def _lines(answer: OsStatus) -> list[str]:
    lines = [] if answer.running else ["no gateway answers; this is what its journal says"]
    system = answer.system
    if system is None:
        lines.append("no image says which system this is (/usr/lib/sluice/release.json)")
    else:
        lines.append(
            f"system     {system.compatible} {system.version}" + (f" ({system.commit[:12]})" if system.commit else "")
        )
        lines.append(f"slot       {system.slot or '-'}, {_goodness(system.good)}")
        lines.append(
            f"other slot {system.other_slot or '-'}: {system.other_version or 'not known'}, "
            f"{_goodness(system.other_good)}"
        )
        lines.append(f"floor      {system.floor or 'none'}")
    job, told = answer.job, answer.told
    if job is not None:
        since = f", since {job.since}" if job.since else ""
        lines.append(f"under way  {job.version}: {job.stage} ({job.origin}{since})")
    if told is not None:
        words = ": ".join(filter(None, (told.phase, told.code, told.reason)))
        lines.append(f"last word  {told.model.version}: {words}")
    if answer.offered is not None:
        lines.append(f"offered    {answer.offered.version}: gateway os install {answer.offered.path}")
    lines += [f"blocked    {each.version}: {each.code}: {each.reason}" for each in answer.blocked]
    lines += [f"problem    {words}" for words in (answer.problem, answer.damage) if words]
    return lines


def _goodness(good: bool | None) -> str:  # noqa: FBT001 - a value
    return "not known to be good" if good is None else "good" if good else "not marked good"


def _is_running(config: Config) -> bool:
    try:
        ask(socket_path(config.gateway), "status")
    except ControlError:
        return False
    return True


def _runtime(config: Config) -> Path:
    return config.gateway.runtime_directory or config.gateway.state_directory


def _config(file: Path) -> Config:
    reading = read(file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(file), reading.errors)
    return reading.config


def _at() -> str:
    return rfc3339(time.time_ns())
