"""Knows whose store it is.

Records are told apart by gateway, epoch, class and number. Under another name the bridge would take all that waits, and
what it has stored and not acknowledged yet, for records of somebody else, and store it twice.
"""

from collections.abc import Callable
from typing import Final

import structlog

from gateway.errors import ConfigError, OutboxError
from gateway.outbox.faults import StoreFullError
from gateway.outbox.opening import Opened
from gateway.wire.plain import so_many

log = structlog.get_logger()

_OWNER: Final = "gateway"
"""In `meta`: the id of the gateway whose records these are."""


def settle_owner(opened: Opened, gateway: str, begin_anew: Callable[[], Opened]) -> Opened:
    """Return a store of this gateway: the opened one, or, where that is empty and another one's, a new one.

    Raises:
        ConfigError: there are records of another gateway in it. It is closed, and as it was.
        OutboxError: no new one can be made.
    """
    database = opened.database
    owner = database.recall(_OWNER)
    if owner == gateway:
        return opened
    if owner is None:  # new, or made before stores said it
        return _claimed(opened, gateway)
    waiting = sum(held.rows for held in database.held.values())
    database.let_go()
    if waiting:
        raise ConfigError(
            f"gateway.id {gateway!r}: {database.file} holds {so_many(waiting, 'record')} of gateway {owner!r},"
            f" which the bridge would store a second time under another name: set gateway.id back to {owner!r}"
            " until they are delivered, or export them (gateway outbox export) and give the new name an outbox.file"
            " of its own"
        )
    log.warning("store_begun_anew", file=str(database.file), reason=f"it belonged to gateway {owner!r}, and was empty")
    return _claimed(begin_anew(), gateway)


def _claimed(opened: Opened, gateway: str) -> Opened:
    database = opened.database
    try:
        with database.transaction():
            database.remember(_OWNER, gateway)
    except StoreFullError as error:
        log.warning("store_not_claimed_yet", file=str(database.file), error=str(error))
    except OutboxError:
        database.let_go()
        raise
    return opened
