"""From the one setting that chooses the store to the store."""

from pathlib import Path
from typing import Final

from cloud_bridge.config import Store as StoreSettings
from cloud_bridge.errors import ConfigError
from cloud_bridge.store.base import Reader, Store
from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.sqlite import SqliteReader, SqliteStore

_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")


def sqlite_path(url: str) -> Path | None:
    """Return the file of an address `sqlite:///relative` or `sqlite:////absolute`, None for other addresses."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) and len(url) > len(_SQLITE) else None


def open_store(settings: StoreSettings, *, whole_months: bool = True) -> Store:
    """Return a store to write to. It is connected, or made, by the first call.

    `whole_months` is how PostgreSQL removes what is old, see `PostgresStore`.

    Raises:
        ConfigError: the setting cannot be used.
        StoreInUseError: it is a file, and another process has it.
        StoreError: its directory cannot be used.
    """
    path = sqlite_path(settings.url)
    if path is not None:
        return SqliteStore(path)
    return _postgres(settings, whole_months=whole_months)


def open_reader(settings: StoreSettings) -> Reader:
    """Return a store to read from, whoever writes it.

    Raises:
        ConfigError: the setting cannot be used, or there is no such file.
    """
    path = sqlite_path(settings.url)
    if path is None:
        return _postgres(settings)
    if not path.exists():
        raise ConfigError(f"there is no store {path}; has the bridge run yet, and with this setting?")
    return SqliteReader(path)


def _postgres(settings: StoreSettings, *, whole_months: bool = True) -> PostgresStore:
    if not settings.url.startswith(_POSTGRES):
        raise ConfigError("store.url: expected sqlite:///PATH or postgresql://HOST/DATABASE")
    return PostgresStore(settings.url, password_of(settings.password_file), whole_months=whole_months)


def password_of(file: Path | None) -> str | None:
    """Read a password from its file, without the line end.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the password file {file} cannot be read: {error}") from error
