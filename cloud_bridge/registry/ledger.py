"""What the registry remembers in the bridge's database: releases and their states, tokens, versions, who may write.

What devices may install is what the signed metadata lists, not what stands here. This is where the deployment tokens
come from, and where it is noticed that somebody put an older repository back.
"""

import json
from collections.abc import Collection, Iterable
from typing import Final, cast

from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Clock, Database, Transaction
from cloud_bridge.identity.events import Happening, note
from cloud_bridge.registry.errors import NotFoundError, RegistryError
from cloud_bridge.registry.release import ReleaseEntry, ReleaseState, StoredFile, digest_of, with_token
from cloud_bridge.registry.schema import VERSIONS
from cloud_bridge.registry.versions import version_key
from gateway.wire.manifest import read_manifest

_COLUMNS: Final = (
    "name, version, token, digest, state, manifest, files, hardware, accepted, key_name, created_ns, published_ns,"
    " yanked_ns, yanked_why, approved_ns, approved_by"
)
_LAST: Final = "token"


class Ledger:
    """The tables of the registry. Safe to use from any thread."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Make the tables, if they are not there.

        Raises:
            StoreError: the database cannot be used now, or a newer version of this program made the tables.
        """
        self._database = database
        self._clock = clock
        with database.transaction() as tx:
            _migrate(tx)

    # ---- numbers ---------------------------------------------------------------------------------------------

    def next_number(self, name: str, at_least: int = 0) -> int:
        """Give out a number greater than any before and than `at_least`, for good."""
        with self._database.transaction() as tx:
            return _next_number(tx, name, at_least)

    def highest(self, name: str) -> int:
        """Return the highest number that was noted or given out under a name, 0 if there is none."""
        with self._database.transaction(durable=False) as tx:
            rows = tx.rows("SELECT value FROM registry_facts WHERE name = ?", (name,))
        return int(rows[0][0]) if rows else 0

    def raise_to(self, name: str, value: int) -> None:
        """Note a number, unless a higher one is noted."""
        with self._database.transaction() as tx:
            _raise_to(tx, name, value)

    # ---- the lock --------------------------------------------------------------------------------------------

    def take_lock(self, name: str, holder: str, seconds: float) -> bool:
        """Take or prolong a lock until some time from now; return whether it is ours."""
        now_ns = self._clock()
        until_ns = now_ns + int(seconds * 1e9)
        with self._database.transaction() as tx:
            tx.change("INSERT INTO registry_locks VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING", (name, "", 0))
            sql = "UPDATE registry_locks SET holder = ?, until_ns = ? WHERE name = ? AND (holder = ? OR until_ns < ?)"
            return tx.change(sql, (holder, until_ns, name, holder, now_ns)) > 0

    def drop_lock(self, name: str, holder: str) -> None:
        """Give a lock back, if it is ours."""
        with self._database.transaction(durable=False) as tx:
            tx.change("UPDATE registry_locks SET until_ns = 0 WHERE name = ? AND holder = ?", (name, holder))

    # ---- releases --------------------------------------------------------------------------------------------

    def releases(self) -> list[ReleaseEntry]:
        """Return all releases, published or not, by name and ascending version."""
        with self._database.transaction(durable=False) as tx:
            rows = tx.rows(f"SELECT {_COLUMNS} FROM registry_releases ORDER BY name, token")  # noqa: S608  # constants
        return sorted((_entry(row) for row in rows), key=lambda one: (one.name, version_key(one.version)))

    def find(self, name: str, version: str) -> ReleaseEntry | None:
        """Return one release."""
        with self._database.transaction(durable=False) as tx:
            return _find(tx, name, version)

    def entry(self, name: str, version: str) -> ReleaseEntry:
        """Return one release.

        Raises:
            NotFoundError: there is none.
        """
        found = self.find(name, version)
        if found is None:
            raise NotFoundError(f"there is no release {name} {version}; `cloud-bridge model list` shows what there is")
        return found

    def reserve(
        self, manifest: bytes, *, state: ReleaseState, hardware: Iterable[str], accepted: Iterable[str], floor: int
    ) -> ReleaseEntry:
        """Give a release its token, higher than all before and than `floor`; an unfinished attempt keeps its own.

        Returns the release as it stands in the ledger, published already if it is the same.

        Raises:
            RegistryError: this version is there with other contents.
        """
        read = read_manifest(manifest)
        name, version = read.name, read.version
        with self._database.transaction() as tx:
            there = _find(tx, name, version)
            if there is not None:
                same = digest_of(with_token(manifest, there.token)) == there.digest
                if there.published_ns is not None:
                    if same:
                        return there
                    raise RegistryError(
                        f"{there.label} is published with other contents (token {there.token}): a version is never "
                        "changed; give the manifest a higher one"
                    )
                if same and there.hardware == tuple(hardware):
                    sql = "UPDATE registry_releases SET state = ?, accepted = ? WHERE name = ? AND version = ?"
                    tx.change(sql, (state, json.dumps(list(accepted)), name, version))
                    return _found(tx, name, version)
                tx.change("DELETE FROM registry_releases WHERE name = ? AND version = ?", (name, version))
            token = _next_number(tx, _LAST, floor)
            filled = with_token(manifest, token)
            key_name = f"{name}@{version}" if there is None else f"{name}@{version}/{token}"
            tx.change(
                f"INSERT INTO registry_releases ({_COLUMNS})"  # noqa: S608  # constants
                " VALUES (?, ?, ?, ?, ?, ?, '[]', ?, ?, ?, ?, NULL, NULL, '', NULL, '')",
                (
                    name,
                    version,
                    token,
                    digest_of(filled),
                    state,
                    filled,
                    json.dumps(list(hardware)),
                    json.dumps(list(accepted)),
                    key_name,
                    self._clock(),
                ),
            )
            return _found(tx, name, version)

    def prepared(self, entry: ReleaseEntry, files: Iterable[StoredFile]) -> None:
        """Note the files of a release before its metadata is signed.

        Raises:
            RegistryError: another process has begun this version with other contents meanwhile.
        """
        text = json.dumps([[one.path, one.size_bytes, one.sha256, dict(one.custom)] for one in files])
        sql = "UPDATE registry_releases SET files = ? WHERE name = ? AND version = ? AND digest = ?"
        with self._database.transaction() as tx:
            if not tx.change(sql, (text, entry.name, entry.version, entry.digest)):
                raise RegistryError(f"{entry.label} was begun anew by somebody else with other contents")

    def adopt(self, entry: ReleaseEntry) -> None:
        """Enter a release that the signed metadata has and this database has not, as after a restore."""
        manifest = entry.manifest_bytes
        text = json.dumps([[one.path, one.size_bytes, one.sha256, dict(one.custom)] for one in entry.files])
        with self._database.transaction() as tx:
            _raise_to(tx, _LAST, entry.token)
            tx.change("DELETE FROM registry_releases WHERE name = ? AND version = ?", (entry.name, entry.version))
            tx.change(
                f"INSERT INTO registry_releases ({_COLUMNS})"  # noqa: S608  # constants
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, '[]', ?, ?, ?, NULL, '', NULL, '')",
                (
                    entry.name,
                    entry.version,
                    entry.token,
                    entry.digest,
                    entry.state,
                    manifest,
                    text,
                    json.dumps(list(entry.hardware)),
                    f"{entry.name}@{entry.version}",
                    self._clock(),
                    self._clock(),
                ),
            )

    def settle(self, listed: dict[tuple[str, str], tuple[StoredFile, ...]]) -> list[ReleaseEntry]:
        """Bring the states in line with what is signed; `listed` are the files by name and version.

        Returns what has changed.
        """
        changed = []
        now_ns = self._clock()
        for entry in self.releases():
            files = listed.get((entry.name, entry.version))
            if files is not None and entry.published_ns is None:
                self.prepared(entry, files)
                self._set(entry, "published_ns", now_ns)
            elif files is not None and entry.yanked_ns is not None:
                self._set(entry, "yanked_ns", None)
            elif files is None and entry.published_ns is not None and entry.yanked_ns is None:
                self._set(entry, "yanked_ns", now_ns)
            else:
                continue
            changed.append(self.entry(entry.name, entry.version))
        return changed

    def is_settled(self, listed: Collection[tuple[str, str]]) -> bool:
        """Tell whether the states are in line with the releases that are signed."""
        return all(
            ((one.name, one.version) in listed) == (one.published_ns is not None and one.yanked_ns is None)
            for one in self.releases()
        )

    def explain_yank(self, entry: ReleaseEntry, why: str) -> None:
        """Note why a release is going to be taken back."""
        self._set(entry, "yanked_why", why)

    def approve(self, entry: ReleaseEntry, who: str) -> None:
        """Make a candidate an approved release."""
        with self._database.transaction() as tx:
            sql = (
                "UPDATE registry_releases SET state = 'approved', approved_ns = ?, approved_by = ?"
                " WHERE name = ? AND version = ? AND state = 'candidate'"
            )
            tx.change(sql, (self._clock(), who, entry.name, entry.version))

    def note(self, kind: str, detail: str, who: str = "operator") -> None:
        """Remember a deed among the events of the bridge (`cloud-bridge identity events`)."""
        with self._database.transaction() as tx:
            note(tx, Happening("", kind, who, detail, {}, proven=True), self._clock())

    def _set(self, entry: ReleaseEntry, column: str, value: int | str | None) -> None:
        sql = f"UPDATE registry_releases SET {column} = ? WHERE name = ? AND version = ?"  # noqa: S608  # constants
        with self._database.transaction() as tx:
            tx.change(sql, (value, entry.name, entry.version))


def _next_number(tx: Transaction, name: str, at_least: int) -> int:
    _raise_to(tx, name, at_least)
    ((value,),) = tx.rows("UPDATE registry_facts SET value = value + 1 WHERE name = ? RETURNING value", (name,))
    return int(value)


def _raise_to(tx: Transaction, name: str, value: int) -> None:
    tx.change("INSERT INTO registry_facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, value))
    tx.change("UPDATE registry_facts SET value = ? WHERE name = ? AND value < ?", (value, name, value))


def _find(tx: Transaction, name: str, version: str) -> ReleaseEntry | None:
    sql = f"SELECT {_COLUMNS} FROM registry_releases WHERE name = ? AND version = ?"  # noqa: S608  # constants
    rows = tx.rows(sql, (name, version))
    return _entry(rows[0]) if rows else None


def _found(tx: Transaction, name: str, version: str) -> ReleaseEntry:
    entry = _find(tx, name, version)
    assert entry is not None
    return entry


def _entry(row: tuple[object, ...]) -> ReleaseEntry:
    name, version, token, digest, state, manifest, files, hardware, accepted, key_name, *times = row
    created_ns, published_ns, yanked_ns, yanked_why, approved_ns, approved_by = times
    document = bytes(cast(bytes, manifest))
    read = read_manifest(document)
    return ReleaseEntry(
        name=str(name),
        version=str(version),
        token=cast(int, token),
        digest=str(digest),
        state=cast(ReleaseState, state),
        published_ns=cast(int | None, published_ns),
        yanked_ns=cast(int | None, yanked_ns),
        yanked_why=str(yanked_why),
        targets=tuple(artefact.target for artefact in read.artefacts),
        files=tuple(StoredFile(path, size, sha256, custom) for path, size, sha256, custom in json.loads(str(files))),
        manifest=read,
        hardware=tuple(json.loads(str(hardware))),
        accepted=tuple(json.loads(str(accepted))),
        created_ns=cast(int, created_ns),
        approved_ns=cast(int | None, approved_ns),
        approved_by=str(approved_by),
        key_name=str(key_name),
        manifest_bytes=document,
    )


def _migrate(tx: Transaction) -> None:
    tx.change("CREATE TABLE IF NOT EXISTS registry_schema (version BIGINT PRIMARY KEY)")
    ((done,),) = tx.rows("SELECT coalesce(max(version), 0) FROM registry_schema")
    if done > len(VERSIONS):
        raise StoreError(f"a newer version made the tables of the registry (schema {done}); install that version")
    for version, statements in enumerate(VERSIONS[done:], start=done + 1):
        for statement in statements:
            tx.change(statement)
        tx.change("INSERT INTO registry_schema (version) VALUES (?)", (version,))
