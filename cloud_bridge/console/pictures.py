"""Which evidence can be shown as a picture, and which is there at all."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from cloud_bridge.store.base import ConsoleReader
from cloud_bridge.values import StoredEvent

_SIGNATURES: Final = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"))
_LINKED_AS: Final = frozenset({"image/jpeg", "image/png"})
_REMEMBERED: Final = 4096

EvidenceKey = tuple[str, str]
"""Gateway and evidence id."""


def picture_type(content: bytes) -> str | None:
    """Tell a picture by its first bytes: the content type that a device claims is not to be trusted."""
    return next((kind for signature, kind in _SIGNATURES if content.startswith(signature)), None)


class Pictures:
    """Remembers which pictures have come: their records travel after the event that links to them.

    A picture that is there stays known without asking the store again; one that is not is asked for each time.
    """

    def __init__(self, data: ConsoleReader) -> None:
        self._data = data
        self._there: OrderedDict[EvidenceKey, None] = OrderedDict()
        self._lock = threading.Lock()

    def among(self, events: Iterable[StoredEvent]) -> frozenset[EvidenceKey]:
        """Return the keys of the pictures behind these events that can be shown. Blocks."""
        linked = {
            (stored.event.gateway, stored.event.evidence.evidence_id)
            for stored in events
            if stored.event.evidence is not None and stored.event.evidence.content_type in _LINKED_AS
        }
        with self._lock:
            known = {key for key in linked if key in self._there}
        come = {key for key in linked - known if self._is_picture(key)}
        with self._lock:
            for key in known | come:
                self._there[key] = None
                self._there.move_to_end(key)
            while len(self._there) > _REMEMBERED:
                self._there.popitem(last=False)
        return frozenset(known | come)

    def _is_picture(self, key: EvidenceKey) -> bool:
        gateway, evidence_id = key
        found = self._data.evidence(evidence_id, gateway)
        return found is not None and picture_type(found[1]) is not None
