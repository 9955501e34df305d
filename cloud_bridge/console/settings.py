"""Where the console listens and who may look."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud_bridge.errors import ConfigError

MIN_TOKEN_CHARACTERS: Final = 20
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_MAX_TOKEN_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """`host` is the address to listen on; `host_names` are the names under which people reach the console."""

    host: str = "127.0.0.1"
    token_file: Path | None = None
    host_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """Checked settings. Without a token everyone who can connect may look."""

    token: str | None
    names: frozenset[str]  # lower case, beyond the loopback ones
    any_address: bool  # an IP address as host is fine: rebinding needs a name


def access_of(settings: ConsoleSettings) -> Access:
    """Check the settings and read the token.

    Raises:
        ConfigError: the console would be open to others without a token, or the token cannot be used.
    """
    beyond = not is_loopback(settings.host)
    names = frozenset(name.lower().rstrip(".") for name in settings.host_names)
    public = sorted(name for name in names if not is_loopback(name))
    if settings.token_file is None:
        if beyond:
            raise ConfigError(
                f"console.host is {settings.host!r}, which others can reach: set console.token_file "
                f"(e.g. made with `openssl rand -hex 32`), or listen on 127.0.0.1"
            )
        if public:
            raise ConfigError(
                f"console.host_names has {', '.join(map(repr, public))}, so others reach the console through a proxy: "
                f"set console.token_file, or leave the names away"
            )
    token = None if settings.token_file is None else _token_in(settings.token_file)
    own = set() if is_wildcard(settings.host) else {settings.host.lower()}
    return Access(token, names | own, any_address=beyond)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can mean itself by this name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Tell whether this address stands for all addresses of the machine."""
    try:
        return host == "" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _token_in(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"console.token_file {file}: {error.strerror or error}") from error
    token = content.decode("ascii", errors="replace").strip()
    if len(token) < MIN_TOKEN_CHARACTERS or len(content) > _MAX_TOKEN_BYTES or not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"console.token_file {file}: expected one line of {MIN_TOKEN_CHARACTERS} to {_MAX_TOKEN_BYTES} printable "
            f"ASCII characters without spaces, e.g. made with `openssl rand -hex 32`"
        )
    return token
