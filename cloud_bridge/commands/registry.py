"""`registry`: the signed repository that releases lie in, and its keys."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, get_args

import click

from cloud_bridge import logs
from cloud_bridge.commands.model import opened
from cloud_bridge.commands.options import Directory, placed, put, say
from cloud_bridge.config import Log
from cloud_bridge.registry import ceremony
from cloud_bridge.registry.errors import NotInitialisedError, RegistryError
from cloud_bridge.registry.keys import make_key, public_file
from cloud_bridge.registry.repository import named
from cloud_bridge.registry.roles import RoleName
from gateway.wire.plain import so_many

_ROLES: Final = get_args(RoleName)
_PASSPHRASE_BYTES_MAX: Final = 1023  # more the libraries under it do not take
_as_json = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
_passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its first line encrypts private keys that are made, and opens those that are encrypted.",
)


def _passphrase(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        with file.open("rb") as opened_file:  # it may be a pipe, from a program that keeps passphrases
            line = opened_file.readline(_PASSPHRASE_BYTES_MAX + 2)
    except OSError as error:
        raise RegistryError(f"{file}: {error.strerror or error}") from error
    passphrase = line.strip()
    if not passphrase:
        raise click.UsageError(f"{file} holds no passphrase in its first line")
    if len(passphrase) > _PASSPHRASE_BYTES_MAX:
        raise click.UsageError(f"the first line of {file} has more than {_PASSPHRASE_BYTES_MAX} bytes")
    return passphrase


@click.group()
def registry() -> None:
    """The signed repository: begin it, look after its keys, sign where they are offline."""
    logs.configure(Log(level="warning"))  # what is done, the commands say themselves


@registry.command()
@placed
@click.option("--root-directory", type=click.Path(file_okay=False, path_type=Path), help="Where root keys are put.")
@click.option("--root-keys", type=click.IntRange(1, 16), default=3, show_default=True, help="So many are made here.")
@click.option(
    "--root-public",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The public half of a root key that was made elsewhere; repeat.",
)
@click.option("--threshold", type=click.IntRange(1, 16), default=2, show_default=True, help="So many must sign a root.")
@click.option(
    "--offline-targets",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A private key that is brought for this once, and signs releases elsewhere; default: one here does. Repeat.",
)
@_passphrase_option
@_as_json
def init(
    file: Path | None,
    store_url: str | None,
    *,
    root_directory: Path | None,
    root_keys: int,
    root_public: tuple[Path, ...],
    threshold: int,
    offline_targets: tuple[Path, ...],
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Begin a repository: draw its keys, and write a first, empty one."""
    with opened(file, store_url) as one:
        beginning = ceremony.Beginning(
            root_directory=(root_directory or one.keys.root).absolute(),
            root_keys=root_keys,
            threshold=threshold,
            root_public=root_public,
            targets_keys=offline_targets,
            passphrase=_passphrase(passphrase_file),
        )
        states = ceremony.initialise(one, beginning, time.time_ns)
        root_file = one.keys.root_file
    if as_json:
        put({"root_file": str(root_file), "keys": [_key_plain(state) for state in states]})
        return
    say(f"the repository is begun; devices trust {root_file}: bring it to them as ota.root_file")
    for state in states:
        say(f"  {state.role:10} {state.keyid[:16]} {state.file or 'not kept here'}")
    say(f"TAKE OFFLINE: move the {root_keys} root keys to media that are kept apart, {threshold} of them are")
    say("needed to change a key. Whoever has them, and whoever has lost them, can never be put right again.")
    if not offline_targets:
        say("The key of the targets stays here, so whoever takes this machine can sign releases; see")
        say("`registry keygen` and `registry rotate-key targets --new-public` for an offline one.")


@registry.command()
@placed
@_as_json
def status(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """Show versions, expiries, keys, and what waits for a signature."""
    with opened(file, store_url) as one:
        found = ceremony.status(one, time.time_ns)
        waiting = len(one.unsigned())
        plain: dict[str, Any] = {
            "url": one.storage.url,
            "roles": {
                role: {
                    "version": found.versions[role],
                    "expires": f"{found.expires[role]:%Y-%m-%dT%H:%M:%SZ}",
                    "threshold": found.thresholds[role],
                    "keys": [_key_plain(key) for key in found.keys if key.role == role],
                }
                for role in found.versions
            },
            "waiting": dict(found.waiting),
            "releases": sum(1 for each in one.releases() if each.is_offered),
            "unpublished": waiting,
            "warnings": list(found.warnings),
        }
    if as_json:
        put(plain)
        return
    say(f"{plain['url']}: {so_many(plain['releases'], 'release')}, {waiting} unpublished")
    now = datetime.now(UTC)
    for role in found.versions:
        for line in _role_lines(found, role, now):
            say(line)
    say(
        "Keys do not end; what they have signed does. It is signed anew, root by `registry rotate-key root`, targets by"
    )
    say("`registry refresh --targets`, the others by the running bridge.")
    for role, count in found.waiting.items():
        say(f"WAITING: {role} needs {count} more signature(s); see `cloud-bridge registry sign --help`")
    for warning in found.warnings:
        say(f"warning: {warning}")


@registry.command()
@placed
@click.option("--targets", is_flag=True, help="The list of targets, too; it waits for its key if that is elsewhere.")
@click.option("--take-older", metavar="WHY", help="An older copy that was put back is to count; is noted.")
def refresh(file: Path | None, store_url: str | None, *, targets: bool, take_older: str | None) -> None:
    """Sign snapshot and timestamp anew, now; the running bridge does it when half of their life is over."""
    if take_older is not None and not take_older.strip():
        raise click.UsageError("--take-older needs a reason, which is noted")
    with opened(file, store_url) as one:
        done = one.refresh(force=True, targets=targets, take_older=take_older or "")
    say(f"timestamp version {done.signed.timestamp.signed.version}")


@registry.command("rotate-key")
@placed
@click.argument("role", type=click.Choice(_ROLES))
@click.option(
    "--root-key",
    "root_keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A private root key that is at hand; repeat. The others can sign later, see `registry sign`.",
)
@click.option("--old", help="The beginning of the key id that goes; needed where a role has several.")
@click.option(
    "--new-public",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The public half of a key that was made elsewhere; default: one is made here.",
)
@_passphrase_option
def rotate_key(
    file: Path | None,
    store_url: str | None,
    *,
    role: RoleName,
    root_keys: tuple[Path, ...],
    old: str | None,
    new_public: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Change a key of ROLE. Devices follow by themselves, also when the old one was stolen."""
    with opened(file, store_url) as one:
        state = ceremony.rotate_key(
            one,
            role,
            time.time_ns,
            root_keys=root_keys,
            passphrase=_passphrase(passphrase_file),
            old=old,
            new_public=new_public,
        )
    say(f"{role} is signed with {state.keyid[:16]} now, {state.file or 'which is not on this machine'}")


@registry.command()
@click.argument("private", type=click.Path(dir_okay=False, path_type=Path))
@_passphrase_option
def keygen(private: Path, passphrase_file: Path | None) -> None:
    """Make a key pair, on any machine: PRIVATE stays there, PRIVATE.pub goes to the bridge."""
    key = make_key(private.absolute(), _passphrase(passphrase_file))
    say(f"{private} (secret) and {public_file(private)} (key id {key.keyid[:16]})")


@registry.command()
@placed
@click.argument("out", type=Directory())
def export(file: Path | None, store_url: str | None, *, out: Path) -> None:
    """Copy the repository as it counts now into a directory, e.g. on a stick for `gateway ota import`."""
    with opened(file, store_url) as one:
        count = one.export(out)
    say(f"{count:,} bytes in {out}")


@registry.command("root")
@placed
def root_(file: Path | None, store_url: str | None) -> None:
    """Print the first root, which devices must be given: it cannot be fetched in a way that is worth anything."""
    with opened(file, store_url) as one:
        if not one.keys.root_file.exists():
            raise NotInitialisedError("there is no repository yet; `cloud-bridge registry init` makes one")
        say(one.read(named("root", 1)).decode(), nl=False)


# ---- keys that are elsewhere -------------------------------------------------------------------------------------


@registry.group()
def sign() -> None:
    """Sign with keys that are elsewhere: `export` here, `add` there, `import` here."""


@sign.command("export")
@placed
@click.argument("out", type=Directory())
def sign_export(file: Path | None, store_url: str | None, *, out: Path) -> None:
    """Write what waits for signatures into OUT, to be carried to the keys."""
    with opened(file, store_url) as one:
        for written in ceremony.export_staged(one, out):
            say(str(written))


@sign.command("add")
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="Private, PEM."
)
@_passphrase_option
def sign_add(document: Path, key: Path, passphrase_file: Path | None) -> None:
    """Sign DOCUMENT, where the key is. Needs no configuration and no network: look at it first, it is JSON."""
    role, version = ceremony.sign_file(document, key, _passphrase(passphrase_file))
    say(f"{role} version {version} is signed")


@sign.command("import")
@placed
@click.argument("documents", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def sign_import(file: Path | None, store_url: str | None, *, documents: tuple[Path, ...]) -> None:
    """Take the signatures in DOCUMENTS; when there are enough, devices can fetch what was signed."""
    with opened(file, store_url) as one:
        waiting = ceremony.import_signed(one, documents)
    missing = {role: count for role, count in waiting.items() if count}
    for role, count in missing.items():
        say(f"{role} needs {count} more signature(s)")
    if not missing:
        say("signed, and published")


def _role_lines(found: ceremony.Status, role: RoleName, now: datetime) -> Iterator[str]:
    """Say how many of which keys have to sign for a role, where they are, and when what they have signed ends."""
    keys = [key for key in found.keys if key.role == role]
    needed = so_many(found.thresholds[role], "signature")
    yield (
        f"{role}: version {found.versions[role]} {ends(found.expires[role], now)}; the next one needs {needed}"
        f" by {'this key' if len(keys) == 1 else f'any of these {len(keys)} keys, each counted once'}"
    )
    for key in keys:
        yield f"  key {key.keyid[:16]} {key.file or 'elsewhere: its private half is not on this machine'}"


def ends(expires: datetime, now: datetime) -> str:
    """Say when something that was signed ends, and in how many days that is."""
    days = (expires - now).total_seconds() / 86_400
    at = f"{expires:%Y-%m-%dT%H:%M:%SZ}"
    if days < 0:
        return f"has ENDED on {at}"
    return f"ends on {at}, in {so_many(int(days), 'day') if days >= 1 else 'less than a day'}"


def _key_plain(state: ceremony.KeyState) -> dict[str, Any]:
    return {"role": state.role, "keyid": state.keyid, "file": None if state.file is None else str(state.file)}
