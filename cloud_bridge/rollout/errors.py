"""What can be wrong with a rollout."""

from cloud_bridge.errors import BridgeError


class RolloutError(BridgeError):
    """A rollout cannot be made, or cannot be moved on as asked; the text says what would help."""
