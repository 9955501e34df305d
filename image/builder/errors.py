"""What can go wrong in a build, by who can act."""


class BuildError(Exception):
    """A step failed; the message names it, and where its log is."""


class MissingError(BuildError):
    """Something must be supplied by a person first: a vendor's part, a package, a download in offline mode."""
