"""Pictures as evidence of events: made while they are wanted and affordable, and linked from each revision."""

from collections.abc import Callable, Sequence

import msgspec

from gateway.config import Interest
from gateway.decide.budget import ByteBudget
from gateway.preprocess.snapshot import may_snapshot, snapshot_of
from gateway.values import Decision, Entry, Sample, SnapshotWish
from gateway.wire.messages import Event, Evidence, EvidenceLink


class Proofs:
    """The pictures of one pipeline, and which of its open events they belong to. The inference thread's."""

    def __init__(
        self,
        pipeline: str,
        interest: Interest,
        may_keep: Callable[[int], bool],
        monotonic_ns: Callable[[], int],
        dropped: Callable[[str], None],
        *,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take parts.

        Args:
            pipeline: its name.
            interest: what of a picture may leave the device, and how large it may be.
            may_keep: tells whether a picture of so many bytes may be kept.
            monotonic_ns: a clock.
            dropped: hears why one was not kept.
            wanted: tells whether pictures are wanted at all; they are not even made where not.
        """
        self._pipeline = pipeline
        self._interest = interest
        self._may_keep = may_keep
        self._monotonic_ns = monotonic_ns
        self._dropped = dropped
        self._wanted = wanted
        self._links: dict[str, EvidenceLink] = {}

    def with_evidence(self, decision: Decision, sample: Sample, budget: ByteBudget) -> list[Entry]:
        """Return the entries of a decision, and the pictures that it wishes for and that may be made."""
        proofs: list[Entry] = []
        for wish in decision.snapshots:
            evidence = self._evidence(wish, sample, budget)
            if evidence is not None:
                self._links[wish.event_id] = _link_to(wish.evidence_id, evidence)
                proofs.append(evidence)
        return [*self.linked(decision.entries), *proofs]

    def linked(self, entries: Sequence[Entry]) -> list[Entry]:
        """Put the link to its evidence into each revision of an event: who sees only the last one needs it too."""
        linked: list[Entry] = []
        for entry in entries:
            body = entry.body
            link = self._links.get(body.event_id) if isinstance(body, Event) else None
            if isinstance(body, Event) and link is not None:
                if body.phase == "end":
                    del self._links[body.event_id]
                proven = msgspec.structs.replace(body, evidence=link)
                entry = Entry(entry.record_class, entry.kind, proven, entry.recorded_at_ns, entry.blob)  # noqa: PLW2901
            linked.append(entry)
        return linked

    def _evidence(self, wish: SnapshotWish, sample: Sample, budget: ByteBudget) -> Entry | None:
        interest = self._interest
        if not self._wanted() or not may_snapshot(sample, wish.box, interest.privacy):
            return None
        snapshot = snapshot_of(
            sample,
            wish.box,
            max_side=interest.snapshot_max_side,
            quality=interest.snapshot_quality,
            privacy=interest.privacy,
        )
        if snapshot is None or not budget.spend(len(snapshot.data), self._monotonic_ns()):
            self._dropped("snapshot-budget" if snapshot else "snapshot-error")
            return None
        if not self._may_keep(len(snapshot.data)):
            self._dropped("link-budget")
            return None
        body = Evidence(
            evidence_id=wish.evidence_id,
            event_id=wish.event_id,
            pipeline=self._pipeline,
            content_type=snapshot.content_type,
            captured_at_ns=sample.captured_at_ns,
            width=snapshot.width,
            height=snapshot.height,
        )
        return Entry("bulk", "evidence", body, sample.captured_at_ns, snapshot.data)


def _link_to(evidence_id: str, entry: Entry) -> EvidenceLink:
    content_type = entry.body.content_type if isinstance(entry.body, Evidence) else ""
    return EvidenceLink(evidence_id=evidence_id, content_type=content_type, size_bytes=len(entry.blob))
