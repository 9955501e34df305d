"""Which authority signs devices: the configuration says, and nothing of the program has to change for it."""

import time
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from cloud_bridge.config import CommandIssuer, Identity, LocalIssuer, PluginIssuer
from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.database import Clock
from cloud_bridge.identity.errors import AuthorityError, RefusedError
from cloud_bridge.identity.foreign import Certificates, ForeignIssuer, Signer
from cloud_bridge.identity.issuer import CertificateRequest, Issuer, LocalCa
from cloud_bridge.identity.signing_command import CommandSigner

GROUP: Final = "sluice.issuers"
"""The group of entry points. Each is a `SignerFactory`."""

SignerFactory = Callable[[str, Mapping[str, Any]], Signer]
"""Given the trust domain and the options of the configuration, returns what has the authority sign.

May raise ConfigError, for options that it cannot use.
"""


def open_issuer(
    settings: Identity, ca: LocalCa, clock: Clock, *, monotonic: Callable[[], float] | None = None
) -> Issuer:
    """Return who signs devices. Nobody is asked yet, and no file of a foreign authority is read.

    Raises:
        ConfigError: there is no such entry point, or it takes its options not.
    """
    chosen = settings.issuer
    if isinstance(chosen, LocalIssuer):
        return ca
    return ForeignIssuer(
        _signer(chosen, settings.trust_domain, clock),
        Certificates(chosen.trust_anchors, "identity.issuer.trust_anchors"),
        revocations=chosen.revocations,
        at_once=chosen.at_once,
        clock=clock,
        monotonic=monotonic or time.monotonic,
    )


def described(settings: Identity) -> str:
    """Say in a few words who signs devices."""
    chosen = settings.issuer
    if isinstance(chosen, CommandIssuer):
        return f"command {chosen.command[0]}"
    return f"plugin {chosen.name}" if isinstance(chosen, PluginIssuer) else "local"


def _signer(chosen: CommandIssuer | PluginIssuer, trust_domain: str, clock: Clock) -> Signer:
    if isinstance(chosen, CommandIssuer):
        return CommandSigner(chosen.command, chosen.timeout_seconds, clock=clock)
    found = entry_points(group=GROUP, name=chosen.name)
    if not found:
        known = ", ".join(sorted(entry_points(group=GROUP).names)) or "there are none"
        raise ConfigError(
            f"identity.issuer.name: no installed package has an entry point {chosen.name!r} in the group {GROUP};"
            f" known: {known}. Install it beside the bridge"
        )
    entry = next(iter(found))
    make = _loaded(entry)
    return _Plugin(f"the plugin {chosen.name}", make(trust_domain, chosen.options))


def _loaded(entry: EntryPoint) -> SignerFactory:
    try:
        make: SignerFactory = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"identity.issuer.name: the entry point {entry.value} cannot be loaded: {error}") from error
    return make


class _Plugin:
    """Somebody else's signer, whose mistakes must not be the bridge's."""

    def __init__(self, name: str, signer: Signer) -> None:
        self._name = name
        self._signer = signer

    def __str__(self) -> str:
        return self._name

    def sign(self, request: CertificateRequest) -> bytes:
        """See foreign.Signer."""
        try:
            return self._signer.sign(request)
        except (AuthorityError, RefusedError):
            raise
        except Exception as error:  # another program's code: its bugs are failures of the authority
            raise AuthorityError("failed", f"{self._name} broke: {type(error).__name__}: {error}") from error
