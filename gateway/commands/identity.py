"""`gateway identity`: the certificate of this gateway, and how it gets one."""

import sys
import time
from pathlib import Path

import click
import msgspec

from gateway.commands.options import config_option, json_option
from gateway.commands.output import coloured, duration, print_json, say
from gateway.config import Config
from gateway.configload import InvalidConfigError, read
from gateway.control import ask, socket_path
from gateway.errors import ConfigError, ControlError
from gateway.identity.agent import IdentityStatus
from gateway.identity.errors import IdentityError
from gateway.identity.record import IdentityFiles
from gateway.owner import become_owner
from gateway.wire.identity import claim_code

_ENROL_SECONDS = 60.0
_MAX_CODE_LETTERS = 4096


@click.group("identity")
def command() -> None:
    """The gateway's one-hour certificate: how it stands, and how to enrol."""


@command.command("status")
@config_option
@json_option
def status(config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell how the identity of the running gateway stands; exit status 1 unless it is valid."""
    config = _config(config_file)
    answer = _ask(config)
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    if answer.state != "valid":
        sys.exit(1)


@command.command("enrol")
@click.argument("code")
@config_option
def enrol(code: str, config_file: Path) -> None:
    """Enrol this gateway with a CODE that `cloud-bridge identity token create` gave.

    A running gateway takes it at once; one that does not run takes it at its next start. `-` reads it from standard
    input, so that it stays out of the shell's history.
    """
    config = _config(config_file)
    text = sys.stdin.readline(_MAX_CODE_LETTERS).strip() if code == "-" else code.strip()
    if claim_code(text) is None:
        raise click.BadParameter("this is no claim code: it begins with sluice1. and has three parts; copy it whole")
    become_owner(config.gateway.state_directory)  # else the gateway could not read what is left for it
    files = IdentityFiles(config.gateway.state_directory)
    try:
        before = _ask(config)
    except ControlError as error:
        files.leave_claim(text)
        say(f"the code is kept for the next start ({error})")
        return
    files.leave_claim(text)
    deadline = time.monotonic() + _ENROL_SECONDS
    while time.monotonic() < deadline:
        answer = _ask(config)
        if answer.renewals > before.renewals and files.read_claim() is None:
            _show(answer)
            return
        if answer.renewals > before.renewals and answer.notice:
            raise IdentityError(answer.notice)
        if answer.refusals > before.refusals:  # what was refused before is no word about this code
            raise IdentityError(answer.reason)
        time.sleep(0.2)
    raise IdentityError(f"not enrolled within {_ENROL_SECONDS:g} s: {_ask(config).reason or 'no answer yet'}")


@command.command("renew")
@config_option
def renew(config_file: Path) -> None:
    """Have the running gateway attest itself now, instead of at half-life."""
    config = _config(config_file)
    ask(socket_path(config.gateway), "renew-identity")
    say("asked; see `gateway identity status`")


def _config(config_file: Path) -> Config:
    reading = read(config_file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    if reading.config.identity is None:
        raise ConfigError(
            f"{config_file} has no `identity`: say where the bridge is, e.g. identity: {{url: https://…}}"
        )
    return reading.config


def _ask(config: Config) -> IdentityStatus:
    path = socket_path(config.gateway)
    try:
        return msgspec.convert(ask(path, "identity"), IdentityStatus)
    except msgspec.ValidationError as error:
        raise ControlError(f"the gateway at {path} answers in a way this version does not know: {error}") from error


def _show(answer: IdentityStatus) -> None:
    state = answer.state if answer.state == "valid" else coloured("failed") + f": {answer.state}"
    say(f"identity: {state}, level {answer.level}")
    if answer.spiffe_id:
        left = answer.expires_in_seconds or 0.0
        say(f"  {answer.spiffe_id}, {f'ends in {duration(left)}' if left > 0 else 'over'}")
    if answer.boot_state:
        say(f"  boot state: {answer.boot_state}")
    for words in (answer.reason, answer.notice):
        if words:
            say(f"  {words}")
    if abs(answer.clock_skew_seconds) > 1:
        say(f"  this machine's clock is {answer.clock_skew_seconds:+.0f} s off the bridge's")
