"""What the bridge remembers of bundles: tokens, states, and why one was taken back. One text for both databases.

What devices can install is what the signed metadata lists; states follow it (`settle`).
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Clock, Database, Transaction
from cloud_bridge.osbundles.bundle import Bundle
from cloud_bridge.registry.errors import NotFoundError, RegistryError
from cloud_bridge.registry.versions import version_key

_VERSION_1: Final = (
    """CREATE TABLE os_bundles (
         compatible TEXT NOT NULL, version TEXT NOT NULL, token BIGINT NOT NULL, sha256 TEXT NOT NULL,
         size_bytes BIGINT NOT NULL, custom TEXT NOT NULL, created_ns BIGINT NOT NULL, published_ns BIGINT,
         yanked_ns BIGINT, yanked_why TEXT NOT NULL, PRIMARY KEY (compatible, version))""",
)
VERSIONS: Final[tuple[tuple[str, ...], ...]] = (_VERSION_1,)
"""Statements of each version, the first one first; never changed once released."""

_COLUMNS: Final = (
    "compatible, version, token, sha256, size_bytes, custom, created_ns, published_ns, yanked_ns, yanked_why"
)


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """A bundle of the repository. `published_ns` is None until its metadata is signed."""

    compatible: str
    version: str
    token: int
    sha256: str
    size_bytes: int
    custom: Mapping[str, Any]
    created_ns: int
    published_ns: int | None
    yanked_ns: int | None
    yanked_why: str

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.compatible} {self.version}"

    @property
    def path(self) -> str:
        """Its path as a target (TUF §4.5)."""
        return f"os/{self.compatible}/{self.version}/bundle.raucb"

    @property
    def place(self) -> str:
        """Where it lies below the repository's URL, with consistent snapshots (TUF §3.1)."""
        return f"targets/os/{self.compatible}/{self.version}/{self.sha256}.bundle.raucb"

    @property
    def state(self) -> str:
        """One word."""
        return "yanked" if self.yanked_ns else "published" if self.published_ns else "unpublished"


class BundleLedger:
    """The table of bundles. Safe to use from any thread."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Make the table, if it is not there.

        Raises:
            StoreError: the database cannot be used now, or a newer version of this program made the table.
        """
        self._database = database
        self._clock = clock
        with database.transaction() as tx:
            _migrate(tx)

    def bundles(self) -> list[BundleEntry]:
        """Return all, by what they are for and ascending version."""
        with self._database.transaction(durable=False) as tx:
            rows = tx.rows(f"SELECT {_COLUMNS} FROM os_bundles ORDER BY compatible, token")  # noqa: S608  # constants
        return sorted((_entry(row) for row in rows), key=lambda one: (one.compatible, version_key(one.version)))

    def find(self, compatible: str, version: str) -> BundleEntry | None:
        """Return one."""
        with self._database.transaction(durable=False) as tx:
            return _find(tx, compatible, version)

    def entry(self, compatible: str, version: str) -> BundleEntry:
        """Return one.

        Raises:
            NotFoundError: there is none.
        """
        found = self.find(compatible, version)
        if found is None:
            raise NotFoundError(f"there is no bundle {compatible} {version}; see `cloud-bridge os list`")
        return found

    def reserve(self, bundle: Bundle, token: int) -> BundleEntry:
        """Enter a bundle before it is signed; the same one that is there already is returned as it is.

        Raises:
            RegistryError: this version is there with other contents, or was taken back.
        """
        with self._database.transaction() as tx:
            there = _find(tx, bundle.compatible, bundle.version)
            if there is not None:
                if there.yanked_ns is not None or there.yanked_why:
                    raise RegistryError(
                        f"{there.label} was taken back ({there.yanked_why or 'no reason given'}): publish a higher one"
                    )
                if there.sha256 == bundle.sha256:
                    return there
                if there.published_ns is not None:
                    raise RegistryError(
                        f"{there.label} is published with other contents: a version is never changed; build another"
                    )
                tx.change(
                    "DELETE FROM os_bundles WHERE compatible = ? AND version = ?", (bundle.compatible, bundle.version)
                )
            tx.change(
                f"INSERT INTO os_bundles ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, '')",  # noqa: S608  # constants
                (
                    bundle.compatible,
                    bundle.version,
                    token,
                    bundle.sha256,
                    bundle.size_bytes,
                    json.dumps(bundle.custom),
                    self._clock(),
                ),
            )
            found = _find(tx, bundle.compatible, bundle.version)
            assert found is not None
            return found

    def explain_yank(self, entry: BundleEntry, why: str) -> None:
        """Note why a bundle is going to be taken back."""
        with self._database.transaction() as tx:
            tx.change(
                "UPDATE os_bundles SET yanked_why = ? WHERE compatible = ? AND version = ?",
                (why, entry.compatible, entry.version),
            )

    def is_settled(self, listed: Collection[str]) -> bool:
        """Tell whether the states are in line with the paths that are signed."""
        return all(
            (one.path in listed) == (one.published_ns is not None and one.yanked_ns is None) for one in self.bundles()
        )

    def settle(self, listed: Collection[str]) -> None:
        """Bring the states in line with the paths that are signed. The caller holds the lock of the repository."""
        now_ns = self._clock()
        for entry in self.bundles():
            is_listed = entry.path in listed
            if is_listed and (entry.published_ns is None or entry.yanked_ns is not None):
                values: tuple[int | None, int | None] = (entry.published_ns or now_ns, None)
            elif not is_listed and entry.published_ns is not None and entry.yanked_ns is None:
                values = (entry.published_ns, now_ns)
            else:
                continue
            with self._database.transaction() as tx:
                tx.change(
                    "UPDATE os_bundles SET published_ns = ?, yanked_ns = ? WHERE compatible = ? AND version = ?",
                    (*values, entry.compatible, entry.version),
                )


def _find(tx: Transaction, compatible: str, version: str) -> BundleEntry | None:
    sql = f"SELECT {_COLUMNS} FROM os_bundles WHERE compatible = ? AND version = ?"  # noqa: S608  # constants
    rows = tx.rows(sql, (compatible, version))
    return _entry(rows[0]) if rows else None


def _entry(row: tuple[Any, ...]) -> BundleEntry:
    compatible, version, token, sha256, size_bytes, custom, *rest = row
    return BundleEntry(compatible, version, token, sha256, size_bytes, json.loads(custom), *rest)


def _migrate(tx: Transaction) -> None:
    tx.change("CREATE TABLE IF NOT EXISTS os_schema (version BIGINT PRIMARY KEY)")
    ((done,),) = tx.rows("SELECT coalesce(max(version), 0) FROM os_schema")
    if done > len(VERSIONS):
        raise StoreError(f"a newer version made the table of bundles (schema {done}); install that version")
    for version, statements in enumerate(VERSIONS[done:], start=done + 1):
        for statement in statements:
            tx.change(statement)
        tx.change("INSERT INTO os_schema (version) VALUES (?)", (version,))
