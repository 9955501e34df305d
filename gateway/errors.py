"""Errors of the device, named after who can act on them."""


class GatewayError(Exception):
    """Every error this program raises on purpose."""


class ConfigError(GatewayError):
    """The configuration cannot be used; a person must change it."""


class ConfigAwayError(ConfigError):
    """The configuration could not be read this time: a disk or a mount fails; starting again may help."""


class SourceLostError(GatewayError):
    """A device stopped answering; opening it again may help."""


class BackendUnavailableError(GatewayError):
    """An accelerator or its runtime is not there; another backend may serve."""


class AcceleratorLostError(BackendUnavailableError):
    """An accelerator went away while it was in use; no model is to blame."""


class ModelError(GatewayError):
    """A model release cannot be run: unreadable, wrong shape, unknown operation, wrong answer on its golden input."""


class WeightsWithheldError(GatewayError):
    """The key of a model's weights is not given out now; asking again may help, another backend would not."""


class ModelAwaitedError(GatewayError):
    """No release that a pipeline may run is on this device; one that comes over the air ends that."""


class InferenceError(GatewayError):
    """One invocation failed; the next may succeed."""


class PipelineBusyError(InferenceError):
    """A pipeline waits for the outbox; its model answers again, or can be exchanged, when that takes something."""


class OutboxError(GatewayError):
    """The store cannot take or give records; restarting the component may help."""


class OutboxFullError(OutboxError):
    """A class that refuses when full is full; the producer must wait."""


class UplinkError(GatewayError):
    """The broker cannot be used as configured."""


class ControlError(GatewayError):
    """A running daemon could not be asked."""


class ControlClosedError(ControlError):
    """The daemon's socket is open to its own user and root alone; whether it runs cannot be told."""


class RequestRefusedError(ControlError):
    """A running daemon was asked, and does not do it."""


class GaveUpError(GatewayError):
    """A component failed too often."""
