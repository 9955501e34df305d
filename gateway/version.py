"""The version of this program."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """Return the version of the installed distribution, or `0+source` when run from bare source."""
    try:
        return version("sluice")
    except PackageNotFoundError:
        return "0+source"
