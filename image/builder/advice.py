"""What a person can do about a failure that a tool tells in words of its own."""

import errno
import re
from typing import Final

_SPACE: Final = "the disk is full: free some, or name other folders with --output and SLUICE_IMAGE_CACHE"
_REMEDIES: Final = (
    (r"No space left on device|Disk quota exceeded|not enough free space", _SPACE),
    (
        r"Unable to locate package (?P<what>\S+)|Package '?(?P<other>[^' ]+)'? has no installation candidate",
        "no archive of this machine's apt has the package {what} for this release: image/base.toml or the target's "
        "board.toml names it; misspelt, or gone? --apt-sources FILE names other archives",
    ),
    (
        r"NO_PUBKEY|The following signatures|is not signed|EXPKEYSIG",
        "the archive is not signed by a key that this machine trusts: apt-get install debian-archive-keyring, or say "
        "signed-by= in --apt-sources FILE",
    ),
    (
        r"Could not resolve|Temporary failure (in name resolution|resolving)|Could not connect|Unable to connect|"
        r"Connection (refused|failed|timed out)|Network is unreachable|Failed to fetch|NewConnectionError|"
        r"Max retries exceeded|No route to host",
        "an archive or index cannot be reached: look at network and proxy of this machine; what has been fetched stays "
        "in the cache, and --offline builds from a complete one",
    ),
    (
        r"THESE PACKAGES DO NOT MATCH THE HASHES",
        "an index delivered something else than was locked: do not use it; `make lock` if the lock is what is wrong",
    ),
    (
        r"unshare failed|Operation not permitted",
        "this machine forbids namespaces or mounts: in a container, it needs CAP_SYS_ADMIN (docker run --privileged)",
    ),
)


def about(output: str) -> str:
    """Return what may be done about the output of a tool that failed; empty if nothing is known."""
    for pattern, remedy in _REMEDIES:
        match = re.search(pattern, output)
        if match:
            words = match.groupdict()
            return remedy.format(what=next((word for word in words.values() if word), ""))
    return ""


def about_os(error: OSError) -> str:
    """Return a message for an operation that the system refused to the builder itself."""
    place = f"{error.filename}: " if error.filename else ""
    told = f"{place}{error.strerror or error}"
    return f"{told}; {_SPACE}" if error.errno in {errno.ENOSPC, errno.EDQUOT} else told
