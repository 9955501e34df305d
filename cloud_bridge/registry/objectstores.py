"""Object stores behind fsspec: how they are asked, how their errors are known, and what a person can do about those."""

import errno
from typing import Any, Final

_S3: Final = frozenset({"s3", "s3a"})
_TRIES: Final = 2
"""Of botocore for one request. Its own default waits a minute for a store that is away, and holds up who asked."""

_PACKAGES: Final = {
    "s3": "pip install 'sluice[cloud,s3]'",
    "s3a": "pip install 'sluice[cloud,s3]'",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "abfs": "pip install adlfs",
    "az": "pip install adlfs",
}
_CREDENTIALS: Final = (
    "give the bridge's user AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials, of somebody who may "
    "read, write, list and delete there"
)
_REMEDIES: Final = {
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS,
    "ProfileNotFound": "name a profile that ~/.aws has in AWS_PROFILE",
    "EndpointConnectionError": "is AWS_ENDPOINT_URL the address of the store, and does it answer?",
}


def protocol_of(url: str) -> str:
    """Return what stands before `://`, or "" for a path."""
    before, mark, _ = url.partition("://")
    return before if mark else ""


def options_for(url: str) -> dict[str, Any]:
    """Return what fsspec is told for a URL: nothing is believed from a cache, and nobody is waited for too long."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol_of(url) in _S3:
        options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": _TRIES}}
    return options


def errors_of(url: str) -> tuple[type[Exception], ...]:
    """Return what an object store raises when it is away or refuses: s3fs passes some of botocore's errors on."""
    if protocol_of(url) not in _S3:
        return (OSError,)
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - of the extra `s3`

    return (OSError, BotoCoreError, ClientError)


def package_for(url: str) -> str:
    """Say how what is needed for a kind of place is installed."""
    return _PACKAGES.get(protocol_of(url), "install the package for it that fsspec names")


def remedy_for(url: str, error: Exception) -> str:
    """Say what a person can do about an error; "" where nothing is known but to try again."""
    if protocol_of(url) not in _S3:
        return ""
    if isinstance(error, PermissionError):
        return f"; {_CREDENTIALS}"
    if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) == errno.ENOENT:
        return "; make the bucket first, and name it in registry.url"
    remedy = _REMEDIES.get(type(error).__name__, "")
    return f"; {remedy}" if remedy else ""
