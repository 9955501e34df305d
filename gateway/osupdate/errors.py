"""What can go wrong with an update of the system. `code` is for programs and never changes."""

from typing import ClassVar

from gateway.ota.errors import OtaError


class OsUpdateError(OtaError):
    """Every error about updates of the system."""

    code: ClassVar[str] = "os"


# ---- the same bundle would fail again: it is blocked --------------------------------------------------------------


class BundleRefusedError(OsUpdateError):
    """This bundle is never installed here."""

    code = "refused"


class BadSignatureError(BundleRefusedError):
    """The bundle is not signed by whom this device believes, or it was changed afterwards."""

    code = "signature"


class IncompatibleError(BundleRefusedError):
    """The bundle is for other hardware."""

    code = "compatible"


class BelowFloorError(BundleRefusedError):
    """The bundle is older than what this device may still run."""

    code = "floor"


class NotAsAnnouncedError(BundleRefusedError):
    """The bundle says something else of itself than the repository, or whoever handed it over, said."""

    code = "mismatch"


# ---- trying again may help ----------------------------------------------------------------------------------------


class RaucUnavailableError(OsUpdateError):
    """There is no RAUC here, it does not answer, or it may not be asked."""

    code = "rauc"


class RaucBusyError(OsUpdateError):
    """RAUC is installing something already."""

    code = "busy"


class OnTrialError(OsUpdateError):
    """What runs has still to prove itself, and the other slot has the last system that did."""

    code = "trial"


class InstallFailedError(OsUpdateError):
    """RAUC gave an installation up."""

    code = "install"


class StreamingFailedError(InstallFailedError):
    """RAUC could not read the bundle over the network; a second try often works, a file does in any case."""

    code = "streaming"


class LeverError(OsUpdateError):
    """Whoever may restart the device did not do it."""

    code = "restart"


class OsJournalError(OsUpdateError):
    """The journal cannot be written; nothing is installed until it can be."""

    code = "journal"
