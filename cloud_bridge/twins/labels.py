"""Labels of devices: `site=berlin`, `ring=canary`. An operator sets them; rollouts choose by them."""

from collections.abc import Mapping

from cloud_bridge.identity.database import Transaction


def set_labels(tx: Transaction, gateway: str, labels: Mapping[str, str | None]) -> None:
    """Set labels of a device; None takes one away."""
    for key, value in sorted(labels.items()):
        if value is None:
            tx.change("DELETE FROM fleet_labels WHERE gateway = ? AND key = ?", (gateway, key))
        else:
            tx.change(
                "INSERT INTO fleet_labels (gateway, key, value) VALUES (?, ?, ?)"
                " ON CONFLICT (gateway, key) DO UPDATE SET value = excluded.value",
                (gateway, key, value),
            )


def all_labels(tx: Transaction) -> dict[str, dict[str, str]]:
    """Return the labels of every device that has any."""
    found: dict[str, dict[str, str]] = {}
    for gateway, key, value in tx.rows("SELECT gateway, key, value FROM fleet_labels ORDER BY gateway, key"):
        found.setdefault(gateway, {})[key] = value
    return found
