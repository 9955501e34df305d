"""Gives devices back what they ran before: what to give, the twins that say so, and the words for it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cloud_bridge.identity.database import Transaction
from cloud_bridge.rollout.plan import Member
from cloud_bridge.rollout.records import Rollout, put_members
from cloud_bridge.rollout.releases import Release, Releases
from cloud_bridge.twins.desired import Change, apply_changes
from cloud_bridge.twins.forgotten import forgotten_devices

Ways = Mapping[Release, Release | None]
"""What devices get instead of releases that they ran before and that were taken out of the registry since."""


def ways_back(releases: Releases | None, back: Sequence[Member]) -> Ways:
    """Look up what to give instead of releases that were taken back meanwhile: the newest good one before each.

    Raises:
        StoreError: the registry cannot be asked now.
    """
    if releases is None:
        return {}
    had = {one.previous for one in back if one.previous is not None}
    return {release: releases.before(release) for release in had if releases.state_of(release) == "yanked"}


def words_of(back: Sequence[Member], returned: Sequence[Member]) -> str:
    """Say what becomes of devices whose release is taken back; `returned` are the same, as `give_back` left them."""
    after = {one.gateway: one.previous for one in returned}
    silent = [one.gateway for one in back if one.previous is None]
    changed = Counter(
        (one.previous, after[one.gateway]) for one in back if one.previous not in (None, after[one.gateway])
    )
    words = f"{len(back) - len(silent) - changed.total()} devices get back what they had"
    if silent:
        words += f"; {len(silent)} had told of no release before that can be given, so what serves there stays"
        words += f" (give --baseline): {silent[0]}"
    for (had, gets), count in sorted(changed.items(), key=str):
        instead = "there is none before it, so they keep this one" if gets is None else f"they get {gets}"
        words += f"; {count} had {had}, which was taken out of the registry: {instead}"
    return words


def give_back(tx: Transaction, rollout: Rollout, back: Sequence[Member], ways: Ways, now_ns: int) -> Sequence[Member]:
    """Give devices what they ran before, under a new and higher token; at once, for a bad release runs there.

    Returns the members as they are then; `previous` is what each gets, None where nothing is left to give.
    """
    if not back:
        return ()
    forgotten = forgotten_devices(tx)
    returned = [replace(one, previous=ways.get(one.previous, one.previous) if one.previous else None) for one in back]
    changes = [
        Change(one.gateway, rollout.plan.pipeline, None if one.previous is None else one.previous.ref, now_ns)
        for one in returned
        if one.gateway not in forgotten  # it would get a twin again
    ]
    token = apply_changes(tx, changes, now_ns)
    returned = [replace(one, token=token, due_ns=now_ns, returned=True) for one in returned]
    put_members(tx, rollout, returned)
    return returned
