"""Errors of the cloud side, named after who can act on them."""


class BridgeError(Exception):
    """Every error this program raises on purpose."""


class ConfigError(BridgeError):
    """The configuration cannot be used; a person must change it."""


class StoreError(BridgeError):
    """The store cannot take or give anything right now; the same call may succeed later."""


class StoreRefusedError(BridgeError):
    """The store will never take this piece of data; trying again is useless."""


class StoreInUseError(BridgeError):
    """Another process writes to this SQLite store."""


class BrokerError(BridgeError):
    """The broker cannot be used, or the link to it stopped working."""


class ForeignStoreError(BrokerError):
    """A bridge with another store takes the records of this broker."""


class ControlError(BridgeError):
    """A running bridge could not be asked."""


class TransferError(BridgeError):
    """A file to import or to export cannot be used."""


class GaveUpError(BridgeError):
    """A component failed too often."""
