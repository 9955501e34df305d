"""Devices that are gone for good, as an operator has said: what brokers have retained of them is no news.

One that speaks again is back, as if it had never been gone.
"""

from typing import Final

from cloud_bridge.identity.database import Transaction

_PREFIX: Final = "forgotten/"


def forget_device(tx: Transaction, gateway: str, now_ns: int) -> None:
    """Remove what is known of a device: its labels, its twins. What it did in rollouts stays in their history."""
    for table in ("fleet_labels", "fleet_desired", "fleet_reported"):
        tx.change(f"DELETE FROM {table} WHERE gateway = ?", (gateway,))  # noqa: S608  # constants
    tx.change(
        "INSERT INTO fleet_facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (_PREFIX + gateway, now_ns),
    )


def forgotten_devices(tx: Transaction) -> frozenset[str]:
    """Return the devices that were forgotten and have not spoken since."""
    rows = tx.rows("SELECT name FROM fleet_facts WHERE substr(name, 1, ?) = ?", (len(_PREFIX), _PREFIX))
    return frozenset(str(name).removeprefix(_PREFIX) for (name,) in rows)


def welcome_back(tx: Transaction, gateway: str) -> None:
    """Note that a device has spoken."""
    tx.change("DELETE FROM fleet_facts WHERE name = ?", (_PREFIX + gateway,))
