"""What can go wrong with sealed weights and their keys, named after who can act on it."""

from collections.abc import Sequence

from gateway.errors import ConfigError, GatewayError


class VaultError(GatewayError):
    """The vault cannot do what it was asked."""


class VaultConfigError(VaultError, ConfigError):
    """The vault cannot be used as configured; a person must change the configuration or install something."""


class DamagedContainerError(VaultError):
    """Sealed weights are not what was written: damaged, cut short, put together from several, or another release's.

    Never retried: the release must be fetched again.
    """


class WrongKeyError(VaultError):
    """The key is not the one that this was sealed with."""


class KeyMissingError(VaultError):
    """There is no key for a release on this device; a grant from the bridge brings one."""


class LeaseEndedError(VaultError):
    """The time this device may use a key without the bridge is over; attestation renews it."""


class KeyStoreError(VaultError):
    """Where the keys live cannot be used; the message says what to do."""


class DamagedKeyFileError(KeyStoreError):
    """What is kept on disk of a key cannot be read any more; another one takes its place."""


class KeyStoreUnavailableError(KeyStoreError):
    """The TPM does not answer, or not in time. Trying again later may help; nothing was changed."""


class PolicyRefusedError(KeyStoreError):
    """The TPM keeps the key: the boot state or the counter is not one that was approved.

    `reasons` has one line for each signed policy, with what differs.
    """

    def __init__(self, what: str, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        listed = "; ".join(self.reasons) or "no signed policy is there"
        super().__init__(f"the TPM refuses {what}: {listed}")
