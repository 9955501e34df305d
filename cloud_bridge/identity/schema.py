"""The tables, one text for both databases: BIGINT and BYTEA mean to SQLite what they say, and so do texts as keys."""

from typing import Final

_VERSION_1: Final = (
    # What several bridges must agree on: the fingerprints of the authorities and of the key over the content keys.
    "CREATE TABLE identity_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE identity_claims (
         id TEXT PRIMARY KEY, gateway TEXT NOT NULL, kind TEXT NOT NULL, replaces BIGINT NOT NULL,
         created_ns BIGINT NOT NULL, expires_ns BIGINT NOT NULL, used_ns BIGINT)""",
    """CREATE TABLE identity_devices (
         gateway TEXT PRIMARY KEY, level TEXT NOT NULL, ek_digest TEXT NOT NULL, ek_trusted BIGINT NOT NULL,
         ak_public BYTEA NOT NULL, recipient BYTEA NOT NULL, state TEXT NOT NULL, version TEXT NOT NULL,
         address TEXT NOT NULL, enrolled_ns BIGINT NOT NULL, attested_ns BIGINT NOT NULL,
         certified_until_ns BIGINT NOT NULL, resets BIGINT NOT NULL, firmware TEXT NOT NULL,
         clock_off_ns BIGINT, revoked_ns BIGINT, revoked_why TEXT)""",
    """CREATE TABLE identity_sessions (
         id TEXT PRIMARY KEY, gateway TEXT NOT NULL, nonce BYTEA NOT NULL, pending BYTEA NOT NULL,
         expires_ns BIGINT NOT NULL, used_ns BIGINT)""",
    "CREATE INDEX identity_sessions_expiry ON identity_sessions (expires_ns)",
    """CREATE TABLE identity_certificates (
         serial TEXT PRIMARY KEY, gateway TEXT NOT NULL, issued_ns BIGINT NOT NULL, not_after_ns BIGINT NOT NULL,
         revoked_ns BIGINT, cut_ns BIGINT)""",
    "CREATE INDEX identity_certificates_gateway ON identity_certificates (gateway, not_after_ns)",
    "CREATE INDEX identity_certificates_uncut ON identity_certificates (not_after_ns) WHERE cut_ns IS NULL",
    "CREATE TABLE identity_cuts (id TEXT PRIMARY KEY, gateway TEXT NOT NULL, due_ns BIGINT NOT NULL)",
    """CREATE TABLE identity_states (
         name TEXT PRIMARY KEY, pcrs TEXT NOT NULL, created_ns BIGINT NOT NULL, origin TEXT NOT NULL)""",
    """CREATE TABLE identity_keys (
         release TEXT PRIMARY KEY, digest TEXT NOT NULL, sealed BYTEA NOT NULL, gateways TEXT NOT NULL,
         created_ns BIGINT NOT NULL, revoked_ns BIGINT)""",
    """CREATE TABLE identity_events (
         id TEXT PRIMARY KEY, first_ns BIGINT NOT NULL, last_ns BIGINT NOT NULL, count BIGINT NOT NULL,
         gateway TEXT NOT NULL, kind TEXT NOT NULL, who TEXT NOT NULL, detail TEXT NOT NULL, evidence TEXT NOT NULL,
         proven BIGINT NOT NULL)""",
    "CREATE INDEX identity_events_last ON identity_events (last_ns)",
    "CREATE INDEX identity_events_gateway ON identity_events (gateway, last_ns)",
)

VERSIONS: Final[tuple[tuple[str, ...], ...]] = (_VERSION_1,)
"""Statements of each version, the first one first; never changed once released."""
