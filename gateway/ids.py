"""Ids of what is told more than once: events and their evidence."""

import secrets


def new_id(at_ns: int) -> str:
    """Make an id that sorts by time: milliseconds since the epoch, then 40 random bits."""
    return f"{at_ns // 1_000_000:012x}{secrets.token_hex(5)}"
