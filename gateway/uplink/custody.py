"""Remembers what was sent by the digest of its payload, so that a bridge which cannot read it can answer for it.

Such a bridge keeps the payload as a dead letter and says so by its digest (`Ack.kept`): which records are in it only
the device knows. A payload that was damaged on its way has another digest, which is unknown here, and is sent again.
Pure.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.wire.messages import CLASSES, Kept, RecordClass

TOLD: Final = 8
"""So many ranges are mentioned in a batch at most; what is older the bridge learns from the base."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first` to `last`, all that the store had above the number `after`."""

    epoch: str
    after: int
    first: int
    last: int
    records: int


class Custody:
    """What is on its way and what the bridge holds unread, by class."""

    def __init__(self, remembered: int) -> None:
        """`remembered` payloads of each class are known by their digests, the latest ones."""
        self._remembered = remembered
        self._sent: dict[RecordClass, OrderedDict[str, Part]] = {name: OrderedDict() for name in CLASSES}
        self._held: dict[RecordClass, list[tuple[str, Kept]]] = {name: [] for name in CLASSES}

    def sent(self, record_class: RecordClass, digest: str, part: Part) -> None:
        """A payload goes out."""
        sent = self._sent[record_class]
        sent[digest] = part
        sent.move_to_end(digest)
        if len(sent) > self._remembered:
            sent.popitem(last=False)

    def kept(self, record_class: RecordClass, epoch: str, digests: Iterable[str]) -> list[Part]:
        """The bridge holds these payloads; return what is in those that were sent, and of this epoch."""
        found = []
        for digest in digests:
            part = self._sent[record_class].pop(digest, None)
            if part is not None and part.epoch == epoch:
                found.append(part)
                held = self._held[record_class]
                held.append((epoch, Kept(first=part.first, last=part.last, digest=digest)))
                del held[:-TOLD]
        return sorted(found, key=lambda part: part.first)

    def told(self, record_class: RecordClass, epoch: str) -> tuple[Kept, ...]:
        """Return what the next batch should mention."""
        return tuple(kept for known, kept in self._held[record_class] if known == epoch)

    def marked(self, record_class: RecordClass, mark: int) -> None:
        """The bridge's mark has come so far: it knows what is below."""
        held = self._held[record_class]
        if held:
            held[:] = [(epoch, kept) for epoch, kept in held if kept.last > mark]

    def forget(self, record_class: RecordClass) -> None:
        """The rows of a class have other numbers now."""
        self._sent[record_class].clear()
        self._held[record_class].clear()
