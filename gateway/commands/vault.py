"""`gateway vault`: the key that protects model weights, what gives it out, and sealed releases."""

import json
import secrets
import sys
from pathlib import Path
from typing import Final, NoReturn

import click
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway import logs
from gateway.commands.options import config_option, json_option
from gateway.commands.output import coloured, duration, print_json, print_table, say
from gateway.commands.vaultfiles import decrypt_files, encrypt_files
from gateway.commands.vaultkeys import read_content_key
from gateway.config import Config, Log
from gateway.config import Vault as VaultSettings
from gateway.configload import InvalidConfigError, read
from gateway.errors import ConfigError
from gateway.owner import become_owner, require_reach
from gateway.vault import policy
from gateway.vault.aead import KEY_BYTES, this_machines_algorithm
from gateway.vault.approvals import read_approvals, read_key_file
from gateway.vault.errors import PolicyRefusedError, VaultError
from gateway.vault.files import write_durably
from gateway.vault.hardening import harden_process
from gateway.vault.keystore import ApprovalStatus
from gateway.vault.store import SealedStore, read_release
from gateway.vault.tpm.registers import read_registers
from gateway.vault.vault import Vault, VaultStatus, open_connection

_EXIT_NOT_APPROVED: Final = 5
"""Of `init`: everything was done that is the device's to do."""


@click.group("vault")
def command() -> None:
    """Look after the key that protects model weights."""
    logs.configure(Log(level="warning"))  # on stderr: what is printed may be JSON for a program


# ---- status --------------------------------------------------------------------------------------


@command.command("status")
@config_option
@json_option
def status(config_file: Path, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Tell whether the key would be given out, and if not, what differs. Exit status 1 if not."""
    found = _vault(config_file).status()
    if as_json:
        print_json(found)
    else:
        _show(found)
    sys.exit(1 if found.problems else 0)


def _show(found: VaultStatus) -> None:
    store = found.store
    say(f"level      {store.level}" + (f" at {store.tcti}" if store.tcti else ""))
    say(f"vault      generation {found.generation}" if found.initialised else "vault      not initialised")
    if store.policy_key:
        say(f"policy key {store.policy_key[:16]}…")
    if store.counter_index is not None:
        value = "never counted" if store.counter is None else str(store.counter)
        say(f"counter    {value} (index {store.counter_index:#x})")
    for number, value in sorted((store.pcrs or {}).items()):
        say(f"PCR {number:<6} {value}")
    if store.approvals:
        say("")
        print_table(("POLICY", "KIND", "HOLDS", "WHY NOT"), [_row(each) for each in store.approvals])
    if found.keys:
        say("")
        rows = [
            (
                key.label or "-",
                key.release[:12],
                "for ever" if key.remaining_seconds is None else _left(key.remaining_seconds),
            )
            for key in found.keys
        ]
        print_table(("KEY FOR", "RELEASE", "LEASE"), rows)
    for warning in store.warnings:
        say(f"{coloured('warning')} {warning}")
    for problem in found.problems:
        say(f"{coloured('failed')} {problem}")
    if not found.problems:
        say(f"{coloured('ok')} the key would be given out")


def _row(each: ApprovalStatus) -> tuple[str, str, str, str]:
    return each.name or each.file, each.kind or "?", "yes" if each.holds else "no", "; ".join(each.reasons)


def _left(seconds: float) -> str:
    return f"{duration(seconds)} left" if seconds else "ended"


# ---- the vault -----------------------------------------------------------------------------------

_anew_option = click.option(
    "--anew", is_flag=True, help="Give up the vault that is there: content keys are lost until they are granted again."
)


@command.command("init")
@config_option
@_anew_option
@json_option
def init(config_file: Path, anew: bool, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Prepare the key store and seal a new vault key; does nothing where that was done.

    Exit status 5: it is sealed, and the present boot state is not approved yet, so that the key is not given out.
    """
    _initialise(config_file, anew=anew, as_json=as_json)


@command.command("seal")
@config_option
@_anew_option
@json_option
def seal(config_file: Path, anew: bool, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Do the same as `init`."""
    _initialise(config_file, anew=anew, as_json=as_json)


def _initialise(config_file: Path, *, anew: bool, as_json: bool) -> None:
    vault = _vault(config_file)
    vault.initialise(anew=anew)
    refused: PolicyRefusedError | None = None
    try:
        vault.check()  # of one that was there before, too
    except PolicyRefusedError as error:
        refused = error
    generation = vault.status().generation
    if as_json:
        reasons = [] if refused is None else _reasons(refused)
        answer = {"sealed": True, "approved": refused is None, "level": vault.store.level, "generation": generation}
        print_json({**answer, "reasons": reasons})
    else:
        say(f"the vault is sealed, level {vault.store.level}, generation {generation}")
        if refused is not None:
            _refused(refused)
            say(
                "  bring an approval of this boot state: `gateway vault policy sign`; until then no model is opened",
                err=True,
            )
    if refused is not None:
        sys.exit(_EXIT_NOT_APPROVED)


@command.command("unseal")
@config_option
@click.option("--check", is_flag=True, required=True, help="Throw everything away: the key is never shown.")
@json_option
def unseal(config_file: Path, check: bool, as_json: bool) -> None:  # noqa: ARG001, FBT001 - click passes by name
    """Have the key store give out everything, and check that it opens the keys."""
    vault = _vault(config_file)
    try:
        vault.check()
    except PolicyRefusedError as error:
        if as_json:
            print_json({"unsealed": False, "error": str(error), "reasons": error.reasons})
        else:
            _refused(error)
        sys.exit(1)
    except VaultError as error:
        if not as_json:
            raise
        print_json({"unsealed": False, "error": str(error), "reasons": []})
        sys.exit(1)
    if as_json:
        print_json({"unsealed": True, "error": None, "reasons": []})
    else:
        say("all keys open")


def _refused(error: PolicyRefusedError) -> None:
    say("gateway: the TPM refuses the vault key:", err=True)
    for reason in _reasons(error):
        say(f"  {reason}", err=True)


def _reasons(error: PolicyRefusedError) -> list[str]:
    return [*error.reasons] or ["no signed policy of a boot state is there"]


@command.command("reseal")
@config_option
def reseal(config_file: Path) -> None:
    """Seal the same keys anew, e.g. after the policy key was changed in the configuration of an approved image."""
    vault = _vault(config_file)
    vault.reseal()
    say(f"sealed anew, generation {vault.status().generation}")


@command.command("rotate")
@config_option
def rotate(config_file: Path) -> None:
    """Change the vault key and the key that grants are addressed to; content keys stay."""
    vault = _vault(config_file)
    vault.rotate()
    say(f"rotated, generation {vault.status().generation}")


@command.command("advance")
@config_option
def advance(config_file: Path) -> None:
    """Count up, so that older images never get the key again. For after an update has proved itself."""
    say(f"the counter is {_vault(config_file).advance_counter()}")


@command.command("import")
@click.argument("release", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--replace", is_flag=True, help="Put another release aside that lies there under the same version.")
@config_option
def import_release(release: Path, replace: bool, config_file: Path) -> None:  # noqa: FBT001 - click passes by name
    """Put the release in a directory into the store: sealed here, or as it is when it came sealed."""
    vault = _vault(config_file)
    harden_process()
    require_reach(release)
    stored = vault.import_release(release, replace=replace)
    say(f"{stored.label} lies sealed in {stored.directory}")
    if not read_release(release).is_sealed:
        say(f"the plain files in {release} are still there; remove them when nobody needs them", err=True)


@command.command("encrypt")
@click.argument("release", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The release's content key, 64 hex digits; drawn and written when it is not there.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where releases are put.")
def encrypt(release: Path, key_file: Path, out: Path) -> None:
    """Seal a release for a fleet, where it is built: one ciphertext for all devices. Needs no configuration."""
    stored = SealedStore(out).put(read_release(release), _content_key(key_file), this_machines_algorithm())
    say(f"{stored.label} ({stored.digest}) lies sealed in {stored.directory}")


def _content_key(file: Path) -> bytes:
    if not file.exists():
        write_durably(file, secrets.token_hex(KEY_BYTES).encode() + b"\n")
    return read_content_key(file)


command.add_command(encrypt_files)
command.add_command(decrypt_files)


# ---- policies ------------------------------------------------------------------------------------


@command.group("policy")
def policy_command() -> None:
    """Say in which states of a machine its TPM gives the key out."""


@policy_command.command("keygen")
@click.argument("private", type=click.Path(path_type=Path, dir_okay=False))
def keygen(private: Path) -> None:
    """Make a policy key: PRIVATE stays where images are built, PRIVATE.pub goes into the image."""
    public = private.with_name(private.name + ".pub")
    for file in (private, public):
        if file.exists():
            raise VaultError(f"{file} is there already: devices trust it, so it is not overwritten")
    key = generate_private_key(SECP256R1())
    write_durably(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_durably(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644)
    say(f"{private} (secret) and {public} (fingerprint {policy.PolicyKey(key.public_key()).fingerprint[:16]}…)")


@policy_command.command("sign")
@click.option("--key", "key_file", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Private, PEM.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The policy directory.")
@click.option("--name", required=True, help="For people, and of the file: e.g. image-1.4.0.")
@click.option("--pcr", "pcrs", multiple=True, metavar="NUMBER=HEX", help="A register's SHA-256 value; repeat.")
@click.option("--this-machine", is_flag=True, help="Take the present values of the registers in vault.pcrs.")
@click.option("--counter-at-most", type=click.IntRange(min=0), help="The highest counter this image may run at.")
@click.option("--first", is_flag=True, help="Instead: let devices begin their counter.")
@click.option(
    "--advance-from", type=click.IntRange(min=0), help="Instead: let devices count from this value to the next."
)
@click.option(
    "--counter-index", type=int, default=policy.DEFAULT_COUNTER_INDEX, show_default="0x18051ce", help="Its NV index."
)
@config_option
def sign(
    *,
    key_file: Path,
    out: Path,
    name: str,
    pcrs: tuple[str, ...],
    this_machine: bool,
    counter_at_most: int | None,
    first: bool,
    advance_from: int | None,
    counter_index: int,
    config_file: Path,
) -> None:
    """Approve a state, where images are built. Needs no TPM, but for --this-machine.

    A boot state says which registers have which values, and up to which value of the counter the image may still get
    the key. The counter of a TPM that never had one begins at 1; `gateway vault status` shows a device's.
    """
    boot = bool(pcrs) or this_machine
    if [boot, first, advance_from is not None].count(True) != 1:
        _misused("give exactly one of: registers (--pcr or --this-machine), --first, --advance-from")
    if boot and counter_at_most is None:
        _misused("a boot state needs --counter-at-most: without a bound, an old image would get the key for ever")
    approval: policy.Approval
    if first:
        approval = policy.FirstCount(name=name, counter_index=counter_index)
    elif advance_from is not None:
        approval = policy.Advance(name=name, counter_index=counter_index, counter=advance_from)
    else:
        assert counter_at_most is not None
        values = _registers_here(config_file) if this_machine else {}
        values |= dict(_register(text) for text in pcrs)
        approval = policy.BootState(
            name=name, counter_index=counter_index, pcrs=values, counter_at_most=counter_at_most
        )
    try:
        private = policy.read_signing_key(key_file.read_bytes())
    except OSError as error:
        raise VaultError(f"{key_file} cannot be read: {error.strerror}") from error
    file = out / f"{name}{policy.POLICY_SUFFIX}"
    out.mkdir(parents=True, exist_ok=True)
    write_durably(file, policy.encode(policy.sign(approval, private)), mode=0o644)
    say(str(file))


@policy_command.command("show")
@config_option
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), help="Instead of the configured one.")
@click.option("--key", "key_file", type=click.Path(path_type=Path, dir_okay=False), help="Public, PEM; likewise.")
@json_option
def show(config_file: Path, directory: Path | None, key_file: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click
    """List signed policies, and whether their signatures are right. Exit status 1 if one is not."""
    if directory is None or key_file is None:
        settings = _settings(_config(config_file))
        directory, key_file = directory or settings.policy_directory, key_file or settings.policy_key_file
    if key_file is None:
        raise VaultError("no policy key: name one with --key, or vault.policy_key_file")
    found = read_approvals(directory, read_key_file(key_file))
    if as_json:
        approved = [
            {"file": str(each.file), "signed": json.loads(policy.encode(each.signed))} for each in found.approved
        ]
        print_json({"approved": approved, "rejected": found.rejected})
    else:
        rows = [(each.file.name, *_described(each.approval)) for each in found.approved]
        rows += [(each.file.name, coloured("failed"), each.reason) for each in found.rejected]
        print_table(("FILE", "KIND", "APPROVES"), rows)
    sys.exit(1 if found.rejected else 0)


def _described(approval: policy.Approval) -> tuple[str, str]:
    match approval:
        case policy.BootState():
            registers = ", ".join(f"PCR {number} {value[:12]}…" for number, value in sorted(approval.pcrs.items()))
            return "boot", f"{registers}, counter up to {approval.counter_at_most}"
        case policy.FirstCount():
            return "first", f"the first count of {approval.counter_index:#x}"
        case policy.Advance():
            return "advance", f"the counter from {approval.counter} to {approval.counter + 1}"


def _registers_here(config_file: Path) -> dict[str, str]:
    settings = _settings(_config(config_file))
    connection = open_connection(settings)
    values = connection.call("reading the registers", lambda tpm: read_registers(tpm, settings.pcrs))
    return {str(number): value.hex() for number, value in values.items()}


def _register(text: str) -> tuple[str, str]:
    number, _, value = text.partition("=")
    if not number.isdigit() or int(number) > 23 or len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):
        _misused(f"--pcr {text}: write NUMBER=HEX, the SHA-256 value of register 0 to 23 in 64 hex digits")
    return str(int(number)), value.lower()


# ---- configuration -------------------------------------------------------------------------------


def _vault(config_file: Path) -> Vault:
    """Open the vault of the gateway, as the gateway's user: what root left in it, the gateway could not read."""
    config = _config(config_file)
    vault = Vault.open(_settings(config), config.gateway.state_directory)  # as root: it looks at who reaches the TPM
    become_owner(config.gateway.state_directory)
    return vault


def _settings(config: Config) -> VaultSettings:
    if config.vault is None:
        raise ConfigError(
            "the configuration has no `vault`: add `vault: {level: tpm, policy_key_file: …}`, or `level: software` on "
            "a machine for development"
        )
    return config.vault


def _config(config_file: Path) -> Config:
    reading = read(config_file, require_files=False)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    return reading.config


def _misused(message: str) -> NoReturn:
    raise click.UsageError(message)
