"""How a claim gets to its device: as a file, as a picture, with what else the device must know."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cloud_bridge.commands.model import opened
from cloud_bridge.commands.options import say
from cloud_bridge.config import Config
from cloud_bridge.identity.claimfile import (
    Carried,
    as_picture,
    as_yaml,
    build_claim,
    form_of,
    new_reset_code,
    read_template,
)
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.files import create_file, write_file
from cloud_bridge.registry.repository import named
from cloud_bridge.rollout.waves import labels_of
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.labels import set_labels


@dataclass(frozen=True, slots=True)
class Carriage:
    """What the command line asks for."""

    claim_file: Path | None
    qr: str | None
    identity_url: str | None
    brokers: tuple[str, ...]
    registry_url: str | None
    labels: tuple[str, ...]
    template: Path | None
    reset_code: bool

    @property
    def wished(self) -> bool:
        """Whether a file or a picture is asked for."""
        return self.claim_file is not None or self.qr is not None

    def check(self) -> None:
        """Find out what can be wrong before anything is made.

        Raises:
            click.UsageError: options that say nothing without a file or a picture.
            IdentityError: the picture's name asks for no form that is made here.
        """
        if self.qr is not None:
            form_of(self.qr)
        labels_of(self.labels)
        alone = self.identity_url or self.brokers or self.registry_url or self.template or self.reset_code
        if alone and not self.wished:
            raise click.UsageError("these options are of the claim file: give --claim-file FILE or --qr FILE, too")

    def registry_root(self, place: tuple[Path | None, str | None], config: Config) -> str | None:
        """Return the root that the device is to be given; None where it needs none.

        To be asked for before a transaction begins: the repository has its memory in the same database.

        Args:
            place: of the bridge's configuration, as the commands get it.
            config: what stands in it.

        Raises:
            IdentityError: the template cannot be used.
        """
        if not self.wished:
            return None
        template = read_template(self.template) if self.template is not None else {}
        wanted = self.registry_url or template.get("registry")
        return _root_of(place, config) if wanted is not None else None

    def prepare(self, root: str | None, config: Config, authority: bytes, claimed: "Claimed") -> "Prepared":
        """Make everything in memory.

        Args:
            root: of `registry_root`.
            config: what stands in the bridge's configuration.
            authority: PEM; whom the device must trust.
            claimed: the claim.

        Raises:
            IdentityError: something is missing, or does not fit.
        """
        prepared = Prepared(self, claimed.gateway, config)
        if not self.wished:
            return prepared
        if self.reset_code:
            prepared.reset_code = new_reset_code()
        template = read_template(self.template) if self.template is not None else {}
        claim = build_claim(
            claimed.gateway,
            code=claimed.code,
            fingerprint=claimed.fingerprint,
            config=config,
            template=template,
            carried=Carried(
                self.identity_url,
                self.brokers,
                self.registry_url,
                root,
                authority.decode("ascii"),
                labels_of(self.labels),
                prepared.reset_code,
            ),
        )
        if self.claim_file is not None:
            prepared.content = as_yaml(claim, claimed.expires_at)
        if self.qr is not None:
            prepared.picture = as_picture(claim, form_of(self.qr))
            prepared.root_needed = claim.registry is not None
        return prepared


@dataclass(frozen=True, slots=True)
class Claimed:
    """The claim that is carried."""

    gateway: str
    code: str | None
    fingerprint: str
    expires_at: str  # RFC 3339


@dataclass(slots=True)
class Prepared:
    """What will be handed out; nothing is on the disk yet."""

    asked: Carriage
    gateway: str
    config: Config
    content: bytes = field(default=b"", repr=False)
    picture: bytes = field(default=b"", repr=False)
    reset_code: str | None = field(default=None, repr=False)
    root_needed: bool = False  # the picture names a registry and has no room for its root

    @property
    def on_terminal(self) -> bool:
        """Whether the terminal gets the picture, and so needs no code beside it."""
        return self.asked.qr == "-"

    def write(self) -> None:
        """Write the files, and set the labels at this bridge as well: devices do not tell theirs.

        Raises:
            IdentityError: a file is there already, or cannot be written.
        """
        if self.asked.claim_file is not None and not create_file(self.asked.claim_file.absolute(), self.content):
            raise IdentityError(f"{self.asked.claim_file} is there already; claims are not written over other files")
        if self.picture and self.asked.qr is not None and not self.on_terminal:
            write_file(Path(self.asked.qr).absolute(), self.picture, 0o600)
        labels = labels_of(self.asked.labels)
        if labels:
            database = open_fleet(self.config.store)
            try:
                with database.transaction() as tx:
                    set_labels(tx, self.gateway, labels)
            finally:
                database.close()

    def plain(self) -> dict[str, Any]:
        """Put it for JSON."""
        found = {"claim_file": self.asked.claim_file, "qr": self.asked.qr, "reset_code": self.reset_code}
        return {name: str(value) for name, value in found.items() if value is not None}

    def tell(self) -> None:
        """Say on standard error what was made; the picture goes to standard output."""
        if self.on_terminal:
            click.echo(self.picture.decode(), nl=False)
        if self.asked.claim_file is not None:
            say(f"{self.asked.claim_file}: copy it to a stick as sluice-claim.yaml; it is a secret", err=True)
        if self.asked.qr is not None and not self.on_terminal:
            say(f"{self.asked.qr}: show it to a camera of the device; it is a secret", err=True)
        if self.root_needed:
            root = "the image must bring the registry's first root (/usr/share/sluice/registry-root.json)"
            say(f"the QR code has no room for it: {root}", err=True)
        if self.reset_code is not None:
            say(f"reset code of {self.gateway}: {self.reset_code}; it is shown here only", err=True)


def _root_of(place: tuple[Path | None, str | None], config: Config) -> str | None:
    """Return the first root of this bridge's own repository, which devices must be given; None where it has none."""
    if config.registry is None:
        return None
    with opened(*place) as registry:
        return registry.read(named("root", 1)).decode() if registry.keys.root_file.exists() else None
