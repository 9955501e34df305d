"""Addresses as people may see them: in logs, in what is told of a device, in errors, in a support bundle.

What an address carries besides the way to a device opens that device: the user and the password before the host, and
the values of the query, as in `http://camera/snapshot.cgi?user=viewer&pwd=…`. Which of the values are secret nobody can
tell by their names alone, so none is shown. The query of a serial line is its baud rate, and stays.
"""

import re
from typing import Final

HIDDEN: Final = "…"
_HIDDEN_ALREADY: Final = ("", HIDDEN, "[redacted]")

_ADDRESS: Final = re.compile(r"([a-z][a-z0-9+.-]{0,15}://|(?<![a-z0-9+.-])://)([^\s\"'<>]+)", re.I)
_LOGIN: Final = re.compile(r"^[^/?#@]*(?:@[^/?#@]*)*@")
# A `/`, `?` or `#` that should have been written in percent; what follows the colon is then no port.
_LOGIN_AS_TYPED: Final = re.compile(r"^[^/?#@:]*:(?!\d+(?:[/?#]|$)).*@")
_SECRET_NAME: Final = re.compile(r"pass|pwd|^pw$|token|key|auth|secret|credential|session|^sid$|^sig", re.I)


def shown(text: str, *, hidden: str = HIDDEN) -> str:
    """Return a text with user, password and the values of the query hidden in every address in it.

    A text without an address is returned as it is, and so is an address without secrets.
    """
    if "://" not in text:
        return text
    return _ADDRESS.sub(lambda found: found[1] + _without_secrets(found[1], found[2], hidden), text)


def has_secret_query(address: str) -> bool:
    """Tell whether the query of an address has what sounds like a secret: `?token=…`, `&pwd=…`, or a bare value."""
    query = address.partition("#")[0].partition("?")[2]
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals or (value and _SECRET_NAME.search(name)):
            return True
    return False


def _without_secrets(scheme: str, rest: str, hidden: str) -> str:
    login = _LOGIN.match(rest) or _LOGIN_AS_TYPED.match(rest)
    if login is not None and login[0][:-1] not in _HIDDEN_ALREADY:
        rest = f"{hidden}@{rest[login.end() :]}"
    if scheme.lower() == "serial://":
        return rest
    way, question, query = rest.partition("?")
    way, fragment_mark, _ = way.partition("#")
    if fragment_mark:
        return f"{way}#{hidden}"
    if not question:
        return way
    stop = query[len(query.rstrip(".,;:)")) :]  # of the sentence around it
    parts = query.removesuffix(stop).split("&")
    return f"{way}?{'&'.join(_without_value(part, hidden) for part in parts)}{stop}"


def _without_value(part: str, hidden: str) -> str:
    name, equals, value = part.partition("=")
    if equals:
        return f"{name}={hidden if value not in _HIDDEN_ALREADY else value}"
    return hidden if part not in _HIDDEN_ALREADY else part
