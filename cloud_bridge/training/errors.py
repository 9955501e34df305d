"""Errors of training."""


class TrainingError(Exception):
    """A model is not fit to ship, or a release is not what it says."""
