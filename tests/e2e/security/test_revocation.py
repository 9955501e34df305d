"""A device that is taken back: its connection ends, it is refused, and its records wait for better days."""

import time

import pytest

from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.flow import arrives, goes_on, settle, waits
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import (
    claim_again,
    enrolled,
    happened,
    revoke,
    tries_to_renew,
    waits_for_identity,
)


def delivers(rig: Rig, records: int, seconds: float) -> bool:
    """Tell whether so many more records reach the cloud within a time."""
    goal, deadline = tally_of(rig).committed + records, time.monotonic() + seconds
    while tally_of(rig).committed < goal:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("cut", [True, False], ids=["protected", "control: sessions are not cut"])
def test_the_records_of_a_revoked_device_stop_within_a_minute(secured: Secured, *, cut: bool) -> None:
    rig = enrolled(secured(bridge={"identity": {"cut_sessions": cut}}))
    revoke(rig)
    if not cut:
        assert delivers(rig, 20, 30.0)
        return
    eventually(lambda: not delivers(rig, 1, 4.0), "the connection is cut", 60.0)
    tries_to_renew(rig)
    assert "stolen" in waits_for_identity(rig, "refused")["reason"]
    assert {"revoked", "revoked-device"} <= happened(rig).keys()
    goes_on(rig, "motor")
    waits(rig, tally_of(rig).enqueued + 20)
    assert tally_of(rig).waiting >= 20

    claim_again(rig)
    waits_for_identity(rig, "valid")
    arrives(rig)
    settle(rig)
