"""`gateway appliance`: from the box to the fleet, through updates, to the next owner."""

import os
import pwd
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import structlog

from gateway import logs
from gateway.appliance.activation import activate, run_command
from gateway.appliance.erase import Eraser
from gateway.appliance.errors import ApplianceError
from gateway.appliance.finders import CameraFinder, FolderFinder, OnceFinder, VolumeFinder
from gateway.appliance.health import Watch, service_restarts
from gateway.appliance.offers import Finder, Offer
from gateway.appliance.places import Places
from gateway.appliance.placing import Account, Placing
from gateway.appliance.plan import Provisioned
from gateway.appliance.provisioning import Provisioner, identifiers_of, read_provisioned
from gateway.appliance.reset import look_for_stick, request_reset, reset_wished, withdraw_reset
from gateway.appliance.tpmobjects import forget_storage_root
from gateway.appliance.volumes import KernelMounter
from gateway.commands.options import Number, json_option
from gateway.commands.output import print_json, say
from gateway.config import Log, Vault
from gateway.configload import read
from gateway.errors import ConfigError
from gateway.owner import become_owner
from gateway.vault.vault import KERNELS_TPM
from gateway.wire.claimfile import MAX_CLAIM_BYTES

log = structlog.get_logger()

_USER: Final = "sluice"
root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work on the device whose files are below this folder, instead of on this one.",
)


@click.group("appliance")
def command() -> None:
    """The appliance: take a claim, judge the image, erase the device."""
    logs.configure(Log())


@command.command("provision")
@click.option("--scan", is_flag=True, help="Wait for a claim on sticks, cards, the boot partition, and before cameras.")
@click.option("--from", "source", type=click.Path(exists=True, path_type=Path), help="Take this claim file.")
@click.option("--replace", is_flag=True, help="Also where the device is provisioned already.")
@click.option("--cameras/--no-cameras", default=True, show_default=True, help="Look for QR codes.")
@root_option
@json_option
def provision(
    *, scan: bool, source: Path | None, replace: bool, cameras: bool, root: Path | None, as_json: bool
) -> None:
    """Make this device a gateway of a fleet, as a claim says. Needs root on an appliance."""
    if scan == (source is not None):
        raise click.UsageError("say either --scan or --from FILE")
    places = _places(root)
    finders: list[Finder] = [] if source is not None else [*_finders(places, cameras=cameras)]
    provisioner = Provisioner(
        places=places,
        placing=Placing(places.settings, places.state, _account() if root is None else None),
        finders=finders,
        identifiers=lambda: identifiers_of(places.sysfs),
        say=lambda words: say(words, err=as_json),
        now_ns=time.time_ns,
    )
    done = provisioner.scan(time.sleep) if source is None else _taken(provisioner, source, replace=replace)
    if root is None and os.geteuid() == 0:
        activate(places, run_command)
    if as_json:
        print_json(done)


def _taken(provisioner: Provisioner, source: Path, *, replace: bool) -> Provisioned:
    resumed = provisioner.resume()
    if resumed is not None and not replace:
        return resumed
    with source.open("rb") as file:
        content = file.read(MAX_CLAIM_BYTES + 1)
    # A person who names a file has it in hand: it stays, and they are told.
    offer = Offer(str(source), content, lambda: "it was named, not found; it is yours to remove")
    return provisioner.apply(offer, offer.claim(), replace=replace)


@command.command("activate")
@root_option
@json_option
def activate_(*, root: Path | None, as_json: bool) -> None:
    """Give the system what the claim has settled: network, time servers, name, SSH. At each boot, as root."""
    try:
        done = activate(_places(root), run_command if root is None else lambda _: "")
    except OSError as error:
        raise ApplianceError(f"{error.filename}: {error.strerror}; this needs root") from error
    if as_json:
        print_json(done)


@command.command("health")
@click.option(
    "--soak", type=Number(0), default=120.0, show_default=True, help="Seconds to look, from the first answer."
)
@click.option("--start-within", type=Number(0), default=300.0, show_default=True, help="Seconds to the first answer.")
@root_option
@json_option
def health(*, soak: float, start_within: float, root: Path | None, as_json: bool) -> None:
    """Judge whether this image may stay; exit status 1 if not. Writes health.json into the state directory."""
    places = _places(root)
    become_owner(places.state)  # who reads the report there, and the gateway's socket is open to it
    watch = Watch(
        places=places,
        monotonic=time.monotonic,
        now_ns=time.time_ns,
        pause=time.sleep,
        restarts=service_restarts if root is None else lambda: None,
    )
    report = watch.soak(soak, start_within)
    if as_json:
        print_json(report)
    else:
        say(f"{report.verdict}{f', image {report.image.version}' if report.image.version else ''}")
        for words in report.reasons:
            say(f"  against it: {words}")
        for words in report.notes:
            say(f"  note: {words}")
    if not report.healthy:
        sys.exit(1)


@command.command("reset")
@click.option("--yes", is_flag=True, help="Do not ask for the gateway's id.")
@click.option("--gateway", help="The id of the gateway that is meant; must be this one.")
@click.option("--why", default="", help="For the log.")
@click.option("--cancel", is_flag=True, help="Take a reset back that has not begun.")
@click.option("--scan", is_flag=True, help="Look once for a stick with sluice-reset.yaml and its code. Needs root.")
@root_option
@json_option
def reset(
    *, yes: bool, gateway: str | None, why: str, cancel: bool, scan: bool, root: Path | None, as_json: bool
) -> None:
    """Erase this device at its next boot: claim, keys, models, configuration, and records that were not delivered."""
    places = _places(root)
    if cancel:
        withdrawn = withdraw_reset(places)
        print_json({"withdrawn": withdrawn}) if as_json else say("withdrawn" if withdrawn else "there was none")
        return
    if scan:
        found = look_for_stick(places, KernelMounter(places.mounts), say, time.time_ns())
        if as_json:
            print_json({"request": found})
        return
    record = read_provisioned(places)
    if not yes:
        say("Everything but the system is erased at the next boot, undelivered records with it.", err=True)
        gateway = click.prompt("To go on, type the id of this gateway", default="", show_default=False, err=True)
        if record is None or gateway != record.gateway:
            raise ApplianceError("that is not this gateway; nothing was done")
    request = request_reset(places, gateway=gateway, by="command", why=why, now_ns=time.time_ns())
    if as_json:
        print_json({"request": request})
    else:
        say("This device is erased at its next boot: `systemctl reboot`, or `--cancel` to take that back.")


@command.command("erase")
@click.option("--reboot/--no-reboot", default=True, show_default=True, help="Start again afterwards.")
@root_option
@json_option
def erase(*, reboot: bool, root: Path | None, as_json: bool) -> None:
    """Carry out the reset that was asked for. Of the early boot, as root; does nothing where none was."""
    places = _places(root)
    if not reset_wished(places):
        say("no reset was asked for", err=True)
        return
    settings = _vault_of(places)
    done = Eraser(places, run_command, lambda: forget_storage_root(settings)).erase()
    if as_json:
        print_json(done)
    if reboot:
        problem = run_command(["systemctl", "reboot", "--force"])
        if problem:
            raise ApplianceError(f"erased, but not restarted: {problem}; take the power away and give it back")


def _vault_of(places: Places) -> Vault:
    try:
        config = read(places.config, require_files=False).config
    except ConfigError:
        config = None
    # The gateway's user owns that file, and must not keep root from the TPM by what is written there.
    if config is not None and (config.vault.level != "tpm" or KERNELS_TPM.fullmatch(config.vault.tcti)):
        return config.vault
    return Vault(level="tpm")


def _places(root: Path | None) -> Places:
    return Places.of_image() if root is None else Places.below(root.absolute())


def _finders(places: Places, *, cameras: bool) -> Iterator[Finder]:
    yield OnceFinder(FolderFinder(places.esp, "boot partition"))
    yield VolumeFinder(places.devices, places.sysfs, KernelMounter(places.mounts))
    if cameras:
        from gateway.appliance.pictures import seen_codes  # noqa: PLC0415  # OpenCV: no other command waits for it

        yield CameraFinder(lambda: seen_codes(places.devices))


def _account() -> Account | None:
    """Return the account of the gateway; None where files stay with whoever runs this."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_USER)
    except KeyError as error:
        raise ApplianceError(f"there is no user {_USER}; `systemd-sysusers` makes it") from error
    return Account(entry.pw_uid, entry.pw_gid)
