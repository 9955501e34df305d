"""Errors of training."""

from cloud_bridge.errors import BridgeError


class TrainingError(BridgeError):
    """A model is not fit to ship, or a release is not what it says."""
