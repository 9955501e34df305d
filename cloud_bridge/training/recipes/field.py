"""What recipes share about data from the field."""

import hashlib
from dataclasses import replace
from typing import Final

from cloud_bridge.training.card import Prose
from cloud_bridge.training.recipes.recipe import Field, Order, Recording

FIELD_FALSE: Final = "false alarms per 1000 healthy windows, field"
FIELD_RECALL: Final = "recall, anomalies from the field"


def field_digest(field: Field) -> str:
    """Return the SHA-256 of all windows from the field, part by part."""
    digest = hashlib.sha256()
    for part in (field.train, field.validation, field.held, field.anomalous):
        digest.update(len(part).to_bytes(8, "big"))
        for one in part:
            digest.update(_name(one))
    return digest.hexdigest()


def provenance(own: str, field: Field) -> str:
    """Say what a release was trained on."""
    if not field.train:
        return own
    places = len({one.origin for one in field.train})
    return (
        f"{own}; {len(field.train)} windows from the field for training, {len(field.validation)} for the threshold, "
        f"{len(field.held)} healthy and {len(field.anomalous)} anomalous held back, of {places} pipelines, "
        f"SHA-256 {field_digest(field)}"
    )


def prose_for(prose: Prose, order: Order) -> Prose:
    """Put a card right for a release that was trained again."""
    if order.parent is None:
        return prose
    return replace(
        prose,
        data=f"{prose.data}\n\nBeside it: {provenance('', order.field).removeprefix('; ')}.",
        beside="",  # measured with another release
        reproduce=(
            f"Trained again from {order.parent} by `cloud-bridge training retrain`, with windows that gateways have "
            "sent as evidence. With the same records, labels and versions of the libraries it makes the same model."
        ),
    )


def _name(one: Recording) -> bytes:
    head = f"{one.origin} {one.channel} {one.samples.shape}".encode()
    return hashlib.sha256(head + one.samples.astype("<f4").tobytes()).digest()
