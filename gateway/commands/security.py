"""How vault and identity stand, for a person who looks at `gateway status`."""

from gateway.commands.output import coloured, duration, say
from gateway.report import IdentityReport, VaultReport
from gateway.wire.plain import so_many

_SOON_SECONDS = 7 * 86_400.0
"""A lease that ends within so much is worth a line."""


def show_vault(vault: VaultReport) -> None:
    """Tell the level, loudly where it protects nothing, and what stands in the way of a key."""
    sealed = f"{so_many(len(vault.releases), 'release')} sealed"
    state = "ready" if vault.ready else "NOT READY"
    say(f"vault:  level {vault.level}, {state}, {sealed}")
    for warning in vault.warnings:
        say(f"  {coloured('warning')}: {warning}")
    for problem in vault.problems:
        say(f"  {coloured('failed')}: {problem}")
    for key in vault.keys:
        left = key.remaining_seconds
        if left is not None and 0 < left < _SOON_SECONDS:
            name = key.label or key.release[:12]
            say(f"  {coloured('warning')}: the key of {name} is leased for another {duration(left)}")


def show_identity(identity: IdentityReport) -> None:
    """Tell who this gateway is, and for how long."""
    left = identity.expires_in_seconds
    over = "no certificate" if left is None else f"valid for {duration(left)}" if left > 0 else "certificate over"
    say(f"identity: {identity.state}, {over}{f', {identity.spiffe_id}' if identity.spiffe_id else ''}")
    if identity.reason:
        say(f"  {coloured('failed')}: {identity.reason}")
