"""The registry's tables, beside those of the identities; one text for SQLite and PostgreSQL."""

from typing import Final

_VERSION_1: Final = (
    # Version numbers given out (`reserved:targets`) and last signed (`signed:timestamp`); the last token.
    "CREATE TABLE registry_facts (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    "CREATE TABLE registry_locks (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until_ns BIGINT NOT NULL)",
    """CREATE TABLE registry_releases (
         name TEXT NOT NULL, version TEXT NOT NULL, token BIGINT NOT NULL UNIQUE, digest TEXT NOT NULL,
         state TEXT NOT NULL, manifest BYTEA NOT NULL, files TEXT NOT NULL, hardware TEXT NOT NULL,
         accepted TEXT NOT NULL, key_name TEXT NOT NULL, created_ns BIGINT NOT NULL, published_ns BIGINT,
         yanked_ns BIGINT, yanked_why TEXT NOT NULL, approved_ns BIGINT, approved_by TEXT NOT NULL,
         PRIMARY KEY (name, version))""",
)

VERSIONS: Final[tuple[tuple[str, ...], ...]] = (_VERSION_1,)
"""Statements of each version, the first one first; never changed once released."""
