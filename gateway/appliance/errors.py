"""Errors of the appliance's own deeds."""

from gateway.errors import GatewayError


class ApplianceError(GatewayError):
    """Something about the appliance could not be done; a person must act."""


class ClaimError(ApplianceError):
    """A claim cannot be taken; says where it is wrong and what to do."""


class AlreadyProvisionedError(ApplianceError):
    """The device belongs to a fleet already."""
