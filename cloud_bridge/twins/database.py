"""Where twins, labels and rollouts are kept: a SQLite file beside the store's, or the store's PostgreSQL database.

A file of its own, because the command line writes here while the bridge runs, and the store's file has one writing
process.
"""

from typing import Final

from cloud_bridge.config import Store
from cloud_bridge.identity.database import Database, PostgresDatabase, Schema, SqliteDatabase
from cloud_bridge.store.opening import password_of, sqlite_path
from cloud_bridge.twins.schema import VERSIONS

FILE_NAME: Final = "fleet.db"
FLEET: Final = Schema("fleet", "fleet", VERSIONS, 0x51_1C_F1)


def open_fleet(store: Store) -> Database:
    """Return the database that goes with the store's setting. It is connected, or made, by the first transaction.

    Raises:
        ConfigError: the password file cannot be read.
    """
    path = sqlite_path(store.url)
    if path is not None:
        return SqliteDatabase(path.parent / FILE_NAME, FLEET)
    return PostgresDatabase(store.url, password_of(store.password_file), schema=FLEET)
