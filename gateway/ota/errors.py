"""What can go wrong between a device and the repository of releases. `code` is for programs and never changes."""

from typing import ClassVar

from gateway.errors import GatewayError


class OtaError(GatewayError):
    """Every error about releases over the air."""

    code: ClassVar[str] = "ota"


# ---- what was served is not what was signed; the same bytes are never tried again --------------------------------


class TrustError(OtaError):
    """What came is not what the keys of the repository have signed for this device, now."""

    code = "untrusted"


class MalformedMetadataError(TrustError):
    """Metadata that cannot be read, or that is of another role than its name says."""

    code = "malformed"


class SignatureError(TrustError):
    """Too few of the keys of the role have signed."""

    code = "signature"


class RollbackError(TrustError):
    """Older than what this device has accepted before."""

    code = "rollback"


class ExpiredError(TrustError):
    """Signed, but for a time that is over: the repository was not renewed, or somebody holds back what is new."""

    code = "expired"


class MismatchError(TrustError):
    """Length, digest or version is not what is signed: damaged on its way, mixed from several states, or tampered."""

    code = "mismatch"


class TooLongError(TrustError):
    """More came than was signed for, or than is ever read of such a file."""

    code = "too-long"


class NotOfferedError(TrustError):
    """The signed list does not have this release: it was never published, or was taken back."""

    code = "not-offered"


class WrongHardwareError(TrustError):
    """The release is signed for other hardware."""

    code = "wrong-hardware"


class BadReleaseError(TrustError):
    """Signed, but it contradicts itself, or it is larger than this device takes."""

    code = "bad-release"


# ---- what this device has accepted before is not known for certain; the bridge sets it anew ------------------------


class FloorError(OtaError):
    """The floor of updates does not stand; until the bridge has set it anew nothing is installed."""

    code = "floor"


class FloorRestoredError(FloorError):
    """An older state of this device was put back, or the floor was removed."""

    code = "floor-restored"


class FloorEditedError(FloorError):
    """The floor is not what this device has written."""

    code = "floor-edited"


class FloorCounterError(FloorError):
    """The counter that the floor is bound to cannot be used: something else has its place in the TPM."""

    code = "floor-counter"


# ---- it could not be had; trying again later may help -----------------------------------------------------------


class FetchError(OtaError):
    """A file could not be had now."""

    code = "fetch"


class NotThereError(FetchError):
    """The source does not have this file."""

    code = "not-found"


class UnreachableError(FetchError):
    """The source does not answer, or not as it should."""

    code = "unreachable"


class IncompleteError(FetchError):
    """The lists that are kept do not belong together: a refresh was cut off between two of them."""

    code = "incomplete"


class RangeIgnoredError(FetchError):
    """The source sends the file from its beginning though a part of it was asked for, or has another file by now."""

    code = "range-ignored"


class TooSlowError(FetchError):
    """The source sends, but slower than is worth waiting for."""

    code = "too-slow"


class DeadlineError(FetchError):
    """The time for this file is over; what came so far is kept."""

    code = "deadline"


class BudgetError(FetchError):
    """The budget or the window of the link does not allow it now."""

    code = "budget"


class BudgetSpentError(BudgetError):
    """What is left of the link's budget is too little: nothing helps before its next period."""


class BusyError(FetchError):
    """Another process works on the same file."""

    code = "busy"


class StoppedError(FetchError):
    """The gateway stops; what came so far is kept."""

    code = "stopped"


class StorageError(OtaError):
    """The disk cannot take or give what is needed; the message says what to do."""

    code = "storage"


class NoRootError(StorageError):
    """`ota.root_file` is not there or cannot be read: until it can be, nothing of the repository is believed."""

    code = "no-root"
