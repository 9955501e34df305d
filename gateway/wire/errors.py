"""Errors of the wire contract."""


class WireError(Exception):
    """Something received does not follow the wire contract."""


class MalformedTopicError(WireError):
    """A topic cannot be read or built."""


class MalformedMessageError(WireError):
    """A payload is not a message of this contract."""


class MalformedManifestError(WireError):
    """A model manifest is not usable."""
