"""Tables of twins, labels and rollouts, one text for both databases (see `cloud_bridge.identity.schema`)."""

from typing import Final

_VERSION_1: Final = (
    # `token`: the highest fencing token that was ever given out.
    "CREATE TABLE fleet_facts (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    """CREATE TABLE fleet_labels (
         gateway TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (gateway, key))""",
    """CREATE TABLE fleet_desired (
         gateway TEXT PRIMARY KEY, version BIGINT NOT NULL, token BIGINT NOT NULL, at_ns BIGINT NOT NULL,
         due_ns BIGINT NOT NULL, assignments TEXT NOT NULL, features TEXT NOT NULL)""",
    """CREATE TABLE fleet_reported (
         gateway TEXT PRIMARY KEY, received_ns BIGINT NOT NULL, token BIGINT NOT NULL, body BYTEA NOT NULL)""",
    """CREATE TABLE rollouts (
         id TEXT PRIMARY KEY, created_ns BIGINT NOT NULL, updated_ns BIGINT NOT NULL, pipeline TEXT NOT NULL,
         phase TEXT NOT NULL, reason TEXT NOT NULL, revision BIGINT NOT NULL, plan TEXT NOT NULL,
         wave BIGINT NOT NULL, wave_ns BIGINT, cursor BIGINT NOT NULL, settled_ns BIGINT,
         looks BIGINT NOT NULL, seen_events BIGINT NOT NULL, seen_hours DOUBLE PRECISION NOT NULL,
         verdict TEXT NOT NULL)""",
    "CREATE INDEX rollouts_created ON rollouts (created_ns)",
    """CREATE TABLE rollout_members (
         rollout TEXT NOT NULL, gateway TEXT NOT NULL, wave BIGINT NOT NULL, release TEXT NOT NULL,
         previous TEXT NOT NULL, assigned_ns BIGINT NOT NULL, due_ns BIGINT NOT NULL, token BIGINT NOT NULL,
         returned BIGINT NOT NULL, PRIMARY KEY (rollout, gateway))""",
    """CREATE TABLE rollout_history (
         rollout TEXT NOT NULL, number BIGINT NOT NULL, at_ns BIGINT NOT NULL, kind TEXT NOT NULL, wave BIGINT NOT NULL,
         who TEXT NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (rollout, number))""",
)

VERSIONS: Final[tuple[tuple[str, ...], ...]] = (_VERSION_1,)
"""Statements of each version, the first one first; never changed once released."""
