"""`gateway vault encrypt-files` and `decrypt-files`: containers of single files, for whoever publishes releases."""

import hashlib
from pathlib import Path

import click

from gateway.commands.output import say
from gateway.commands.vaultkeys import read_content_key
from gateway.errors import ModelError
from gateway.vault.aead import this_machines_algorithm
from gateway.vault.container import Contents, opened, sealed
from gateway.vault.errors import VaultError
from gateway.vault.files import write_durably
from gateway.vault.hardening import harden_process
from gateway.vault.store import SEALED_SUFFIX
from gateway.vault.weights import header_of
from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import read_manifest

_key_file_option = click.option(
    "--key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The release's content key, 64 hex digits.",
)
_out_option = click.option(
    "--out", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="An existing directory."
)


@click.command("encrypt-files")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--release",
    "manifest_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The manifest.json of the release that the files belong to.",
)
@_key_file_option
@_out_option
def encrypt_files(directory: Path, manifest_file: Path, key_file: Path, out: Path) -> None:
    """Seal every file in DIRECTORY for a release, as OUT/NAME.sealed: compressed weights, patches."""
    harden_process()
    key = read_content_key(key_file)
    document = manifest_file.read_bytes()
    try:
        manifest = read_manifest(document)
    except MalformedManifestError as error:
        raise ModelError(f"{manifest_file}: {error}") from error
    release = hashlib.sha256(document).hexdigest()
    for file in sorted(directory.iterdir()):
        plain = file.read_bytes()
        contents = Contents(
            name=manifest.name,
            version=manifest.version,
            release=release,
            file=file.name,
            sha256=hashlib.sha256(plain).hexdigest(),
            size_bytes=len(plain),
        )
        target = out / (file.name + SEALED_SUFFIX)
        write_durably(target, sealed(contents, key, plain, this_machines_algorithm()))
        say(str(target))


@click.command("decrypt-files")
@click.argument("containers", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_key_file_option
@_out_option
def decrypt_files(containers: tuple[Path, ...], key_file: Path, out: Path) -> None:
    """Open sealed files, each as OUT/NAME by the name that it was sealed under: in clear, for you only (mode 0600)."""
    harden_process()
    key = read_content_key(key_file)
    for container in containers:
        try:
            plain = opened(container.read_bytes(), key)
        except VaultError as error:
            raise ModelError(f"{container}: {error}") from error
        target = out / header_of(container).file
        write_durably(target, plain)
        say(str(target))
