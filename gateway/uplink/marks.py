"""What the bridge says about records: which it has committed, which it has under other numbers, which it cannot read.

The pure half is `delivery`; here its answers are looked into where they speak of rows that this run has not sent, and
rows leave the store.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from gateway.errors import OutboxError
from gateway.threads import Worker
from gateway.uplink.custody import Custody
from gateway.uplink.delivery import Delivery
from gateway.uplink.exchange import Incoming
from gateway.uplink.withholding import KeepingStore, Withholding
from gateway.wire.errors import WireError
from gateway.wire.messages import CLASSES, NO_EPOCH, Ack, RecordClass, decode
from gateway.wire.topics import address_of

log = structlog.get_logger()

SETTLE_SECONDS: Final = 0.1
"""Patience after a connection for the retained acks: they may save a whole window from being sent again."""
FIRST_SETTLE_SECONDS: Final = 2.0
"""The same for the first acks of a store of which something has gone before: only they tell that it is an old copy."""


class RecordStore(KeepingStore, Protocol):
    """What the uplink needs of the outbox. All methods block, and are called from worker threads."""

    @property
    def epoch(self) -> str:
        """The random id of the present store file."""
        ...

    def acknowledge(self, record_class: RecordClass, epoch: str, mark: int) -> int:
        """Let the rows up to the mark go; return how many went."""
        ...

    def follow(self, record_class: RecordClass, epoch: str, mark: int) -> bool:
        """Number rows again that the bridge cannot have, above a mark that speaks of other rows; see the outbox."""
        ...

    def heads(self) -> Mapping[RecordClass, tuple[int, int]]:
        """Return the lowest and highest sequence number present; a class without rows is absent."""
        ...


@dataclass(frozen=True, slots=True)
class _Unproven:
    """A mark that must be looked into, and up to which number the broker had taken what was sent when it came."""

    ack: Ack
    taken: int


class StoreWatch:
    """Tells when the store cannot be read, and when it can again."""

    def __init__(self) -> None:
        self._is_away = False

    def away(self, error: OutboxError) -> None:
        """It did not answer."""
        if not self._is_away:
            log.error("store_unreadable", error=str(error))
        self._is_away = True

    def here(self) -> None:
        """It did."""
        if self._is_away:
            log.info("store_readable_again")
        self._is_away = False


class Marks:
    """Takes what comes on `ack/<class>`. Every method belongs to the event loop."""

    def __init__(
        self,
        root: str,
        store: RecordStore,
        delivery: Delivery,
        withholding: Withholding,
        custody: Custody,
        *,
        worker: Worker,
        watch: StoreWatch,
        woken: Callable[[], None],
        monotonic_ns: Callable[[], int],
        on_conflict: Callable[[RecordClass, int], None] | None,
    ) -> None:
        """`worker` asks the store, `woken` is called when there may be something to send."""
        self._root = root
        self._store = store
        self._delivery = delivery
        self._withholding = withholding
        self._custody = custody
        self._worker = worker
        self._watch = watch
        self._woken = woken
        self._monotonic_ns = monotonic_ns
        self._on_conflict = on_conflict
        self._first = asyncio.Event()
        self._awaited: set[RecordClass] = set()  # classes whose first ack of this run should be there at once
        self._marks: dict[RecordClass, tuple[str, int]] = {}
        self._due = asyncio.Event()
        self._overdue: set[RecordClass] = set()
        self._unread: set[RecordClass] = set()  # classes of which the bridge could not read the latest
        self._unproven: dict[RecordClass, _Unproven] = {}
        self.unread_records: Counter[RecordClass] = Counter()
        """Records that the bridge holds as dead letters, since the start."""
        self.conflicts: dict[RecordClass, int] = {}
        """Numbers that the bridge has for other records."""
        self.ignored = 0
        """Acknowledgements that nothing here could be made of."""

    @property
    def unproven(self) -> Iterable[RecordClass]:
        """Classes that must not be sent: a mark of theirs is looked into, and numbers may change."""
        return self._unproven.keys()

    def expect(self, classes: Iterable[RecordClass]) -> None:
        """Of these classes a retained mark should be there with the first connection."""
        self._awaited = set(classes)

    def link_up(self) -> None:
        """A connection is there; what was retained comes again."""
        self._unproven.clear()
        self._first.clear()

    async def settle(self) -> None:
        """Wait a moment for the retained marks."""
        try:
            async with asyncio.timeout(FIRST_SETTLE_SECONDS if self._awaited else SETTLE_SECONDS):
                await self._first.wait()
        except TimeoutError:
            self._delivery.doubt(self._awaited)
            self._awaited.clear()

    def expire(self, now_ns: int) -> None:
        """Send back what the bridge has not answered in time."""
        for name in self._delivery.expire(now_ns):
            if name not in self._overdue:
                log.warning("acks_overdue", record_class=name)
                self._overdue.add(name)

    def began(self, epoch: str, heads: Mapping[RecordClass, tuple[int, int]]) -> None:
        """The store was asked what it holds."""
        if epoch != self._delivery.epoch:
            self.conflicts.clear()  # they were counted in the old one
        self._delivery.begin(epoch, heads)
        for name, progress in self._delivery.progress().items():
            if name in heads and heads[name][0] <= progress.confirmed:  # the store was away when they were confirmed
                self._marks.setdefault(name, (epoch, progress.confirmed))
                self._due.set()

    # ---- taking --------------------------------------------------------------------------------------

    def take(self, message: Incoming) -> None:
        """Take a message of `ack/<class>`; bad ones are counted."""
        try:
            address = address_of(message.topic, self._root)
            ack = decode(message.payload, Ack)
        except WireError as error:
            if not self.ignored:
                log.warning("ack_unreadable", error=str(error)[:200])
            self.ignored += 1
            return
        name = next((each for each in CLASSES if each == address.name), None)
        if name is None:
            self.ignored += 1
            return
        if ack.kept:
            self._take_custody(name, ack)
        if ack.epoch == NO_EPOCH:
            return
        self._note_conflicts(name, ack)
        if self._delivery.needs_proof(name, ack) or self._delivery.is_ahead(name, ack):
            self._unproven[name] = _Unproven(ack, self._delivery.taken_to(name))
        else:
            self._unproven.pop(name, None)
            self._take_mark(name, ack)
        self._awaited.discard(name)
        if not self._awaited:
            self._first.set()
        self._woken()

    def _take_custody(self, name: RecordClass, ack: Ack) -> None:
        """The bridge answers for payloads that it cannot read: their rows need not wait here."""
        for part in self._custody.kept(name, self._delivery.epoch, ack.kept):
            self.unread_records[name] += part.records
            if name not in self._unread:
                log.error(
                    "records_kept_unread",
                    record_class=name,
                    first=part.first,
                    last=part.last,
                    remedy="the bridge holds them as dead letters; upgrade it, then `cloud-bridge deadletters replay`",
                )
                self._unread.add(name)
            mark = self._delivery.kept(name, part.after, part.last, self._monotonic_ns())
            if mark is not None:
                self._let_go(name, part.epoch, mark)
        self._woken()

    def _take_mark(self, name: RecordClass, ack: Ack) -> None:
        mark = self._delivery.acknowledged(name, ack, self._monotonic_ns())
        if mark is None:
            return
        self._custody.marked(name, ack.mark)
        if name in self._unread:
            log.info("records_read_again", record_class=name, unread_records=self.unread_records[name])
            self._unread.discard(name)
        self._let_go(name, ack.epoch, mark)

    def _let_go(self, name: RecordClass, epoch: str, mark: int) -> None:
        if name in self._overdue:
            log.info("acks_are_back", record_class=name)
            self._overdue.discard(name)
        self._marks[name] = (epoch, mark)
        self._due.set()

    def _note_conflicts(self, name: RecordClass, ack: Ack) -> None:
        if ack.epoch != self._delivery.epoch or ack.conflicts <= self.conflicts.get(name, 0):
            return
        log.error(
            "identity_in_conflict",
            record_class=name,
            conflicts=ack.conflicts,
            remedy="another device writes under this gateway's id and store; the cloud keeps its records as dead "
            "letters; give each device an id and a state directory of its own",
        )
        self.conflicts[name] = ack.conflicts
        if self._on_conflict is not None:
            self._on_conflict(name, ack.conflicts)

    # ---- looking into --------------------------------------------------------------------------------

    async def prove(self) -> None:
        """Look into marks of rows that this run has not sent, before anything is let go or sent."""
        for name, unproven in list(self._unproven.items()):
            if self._unproven.get(name) is not unproven:  # settled, or asked anew, while another class was looked into
                continue
            ack = unproven.ack
            try:
                if self._delivery.is_ahead(name, ack):
                    verdict = "other"
                else:
                    known = self._delivery.taken_or_confirmed(name)
                    verdict = await self._worker.do(self._withholding.verdict, name, ack.mark, ack.digest, known)
            except OutboxError as error:
                # Not believed then: the rows are sent, and what the bridge has already it knows by their numbers.
                self._watch.away(error)
                verdict = "unsent"
            if verdict == "other" and self._delivery.was_sent(name, ack.mark):
                verdict = "unsent"  # ours are on their way, and must keep their numbers
            if verdict == "other" and self._unproven.get(name) is not unproven:
                continue  # the bridge has spoken again meanwhile: nothing is numbered anew for a word of yesterday
            if verdict == "other" and not await self._follow(name, ack):
                continue
            self._delivery.heard(name)
            if self._unproven.get(name) is unproven:
                del self._unproven[name]
            if verdict == "same":
                self._take_mark(name, ack)
            elif verdict == "unsent":
                self._take_reached(name, unproven)

    def _take_reached(self, name: RecordClass, unproven: _Unproven) -> None:
        epoch = unproven.ack.epoch
        mark = self._delivery.reached(name, epoch, unproven.taken, self._monotonic_ns())
        if mark is not None:
            self._custody.marked(name, mark)
            self._let_go(name, epoch, mark)

    async def _follow(self, name: RecordClass, ack: Ack) -> bool:
        """Hand a mark over that speaks of rows which are not ours; False: the store does not answer, ask it again."""
        if self._delivery.has_met(name):
            followed = False
        else:
            try:
                followed = await self._worker.do(self._store.follow, name, ack.epoch, ack.mark)
                heads = await self._worker.do(self._store.heads)
            except OutboxError as error:
                self._watch.away(error)  # the class is held meanwhile: a row that was sent must not change its number
                return False
            if followed:
                self._custody.forget(name)
                self._delivery.followed(name, max(ack.mark, heads.get(name, (0, 0))[1]), self._monotonic_ns())
                return True
        if self._delivery.is_ahead(name, ack):
            self._take_mark(name, ack)  # it is counted as one that nothing here matches
            return True
        log.error(
            "mark_of_another",
            record_class=name,
            mark=ack.mark,
            remedy="the cloud has other records under the numbers of this store: it was cloned, or put back "
            "from a copy; give each device an id and a state directory of its own",
        )
        self.ignored += 1
        return True

    # ---- letting go ----------------------------------------------------------------------------------

    async def confirm_all(self) -> None:
        """Let acknowledged rows go, the latest mark of each class at a time."""
        with Worker("uplink-confirm") as worker:  # of its own: a read that hangs keeps no rows here
            while True:
                await self._due.wait()
                self._due.clear()
                marks, self._marks = self._marks, {}
                for name, (epoch, mark) in marks.items():
                    try:
                        await worker.do(self._store.acknowledge, name, epoch, mark)
                    except OutboxError as error:
                        # The rows stay; the next look at the store finds them and lets them go.
                        self._watch.away(error)
