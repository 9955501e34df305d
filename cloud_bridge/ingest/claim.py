"""Which store takes the records of a broker: one at a time.

Two bridges with one store share the work. Two with a store each would share the records: each gets some, frees them on
the devices by its marks, and takes what the other has for numbers that were given up. So a bridge says on the
broker, retained, which store it writes to, and takes nothing while another one does.

The older store wins, however they were started: what a colleague tries out on a laptop must not stop the site. A store
that is not written to any more (its last bridge has stopped, or the broker has said so by its will) is waited for, and
then given up with a warning; that is how a store that was lost is replaced.
"""

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

import msgspec
import structlog

from cloud_bridge.errors import ForeignStoreError
from gateway.wire.topics import VERSION

log = structlog.get_logger()

_LISTEN_SECONDS: Final = 0.3
"""After the broker has granted the subscription: what it has retained comes right behind."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What lies on the broker. Ids begin with the time at which the store was made, so they are ordered by age."""

    store: str
    bridge: str
    alive: bool
    take_over: bool = False


class Turn(Enum):
    """What a link is to do now."""

    WAIT = "wait"
    BEGIN = "begin"  # say that this store is written to, and subscribe
    REPEAT = "repeat"  # say it again: somebody else has said otherwise
    GO_ON = "go on"


def claim_topic(root: str, group: str) -> str:
    """Return where claims lie; outside of what devices may write."""
    return f"{root}/{VERSION}/bridge/store/{group}"


class StoreClaim:
    """The claim of one link, through all its connections."""

    def __init__(
        self,
        store_id: Callable[[], str | None],
        bridge: str,
        *,
        patience_seconds: float,
        take_over: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without knowing anything.

        Args:
            store_id: returns it, or None while the store cannot be reached.
            bridge: the name of this link.
            patience_seconds: how long a store that is not written to is waited for.
            take_over: whether to take records even from an older store that is written to.
            monotonic: a clock, in seconds.
        """
        self._store_id = store_id
        self._bridge = bridge
        self._patience = patience_seconds
        self._take_over = take_over
        self._monotonic = monotonic
        self._own: str | None = None
        self._other: Claim | None = None
        self._other_since = 0.0
        self._granted_at: float | None = None
        self._is_unheard = False  # the broker does not let us listen
        self._repeat = False
        self._is_waiting = False
        self.held = False
        """Whether this store's records are taken by this link."""

    @property
    def own(self) -> str | None:
        """The id of this store, if it was learnt."""
        return self._own

    def learn(self) -> str | None:
        """Ask the store for its id, if it is not known yet; this may take as long as a database that is away."""
        if self._own is None:
            self._own = self._store_id()
        return self._own

    @property
    def listened(self) -> bool:
        """Whether what the broker has retained of claims was heard on this connection."""
        return self._granted_at is not None and self._monotonic() - self._granted_at >= _LISTEN_SECONDS

    def message(self, *, alive: bool) -> bytes:
        """Return what to publish; the store's id must be known."""
        claim = Claim(store=self._own or "", bridge=self._bridge, alive=alive, take_over=self._take_over)
        return msgspec.json.encode(claim)

    def connected(self, *, resumed: bool = False) -> None:
        """Note a new connection; what the broker has retained comes again.

        A session that goes on was one that took records, and what it holds comes before anything is heard of claims: as
        many messages as may be unacknowledged. So they are taken.
        """
        self._granted_at = None
        if resumed and not self.held:
            self.held = self._repeat = True

    def granted(self, *, refused: bool) -> None:
        """Note the broker's answer to the subscription of the topic of claims."""
        if refused and not self._is_unheard:
            remedy = "run `cloud-bridge broker-config` again, or let the bridge read and write its own topic"
            log.warning("store_claim_refused", link=self._bridge, remedy=remedy)
        self._is_unheard = refused
        self._granted_at = self._monotonic()

    def heard(self, payload: bytes) -> None:
        """Take what lies on the broker, or was just put there. What is no claim is passed over."""
        try:
            claim = msgspec.json.decode(payload, type=Claim)
        except msgspec.DecodeError:
            return
        if claim.store == self._own:
            self._other = None
            self._repeat = self.held and not claim.alive  # one of several links has ended
            return
        if self._other is None or self._other.alive:
            self._other_since = self._monotonic()
        self._other = claim

    def turn(self) -> Turn:
        """Say what to do now.

        Raises:
            ForeignStoreError: another store takes the records.
        """
        own = self.learn()
        if own is None or self._granted_at is None:
            return Turn.GO_ON if self.held else Turn.WAIT
        if self._is_unheard:
            return self._begin()
        if self._monotonic() - self._granted_at < _LISTEN_SECONDS:
            return Turn.GO_ON if self.held else Turn.WAIT
        other = self._other
        if other is not None and other.store != own:  # else it was heard before this store's id was known
            if other.alive and self._yields_to(other, own):
                self.held = False
                raise ForeignStoreError(
                    f"another store takes the records of this broker: {other.store}, written by {other.bridge}. "
                    f"This one is {own}. Stop one of the two; to go on with this one, start it once with --take-over"
                )
            if not self.held and self._yields_to(other, own) and not self._is_out_of_patience(other):
                return Turn.WAIT
            log.warning("store_changed", link=self._bridge, from_store=other.store, to_store=own)
            self._other = None
            self._repeat = self.held
        if self._repeat:
            self._repeat = False
            return Turn.REPEAT
        return self._begin()

    def _begin(self) -> Turn:
        if self.held:
            return Turn.GO_ON
        self.held = True
        return Turn.BEGIN

    def _yields_to(self, other: Claim, own: str) -> bool:
        if other.take_over != self._take_over:
            return other.take_over
        return other.store < own

    def _is_out_of_patience(self, other: Claim) -> bool:
        if self._monotonic() - self._other_since >= self._patience:
            return True
        if not self._is_waiting:
            self._is_waiting = True
            remedy = "an older store was used with this broker: start its bridge, or this one with --take-over"
            log.warning(
                "store_waits", link=self._bridge, older_store=other.store, seconds=self._patience, remedy=remedy
            )
        return False
