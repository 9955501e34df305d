"""The plain cases of store-and-forward, with real processes: nothing lost, nothing twice."""

import signal

from hil.loopback.tally import tally_of
from tests.e2e.conftest import Site
from tests.e2e.flow import arrives, settle, waits


def test_records_reach_the_store_and_leave_the_outbox(site: Site) -> None:
    rig = site()
    rig.start()
    waits(rig, 10)
    arrives(rig)
    settle(rig)


def test_a_broker_that_is_down_at_start_loses_nothing(site: Site) -> None:
    rig = site()
    rig.start_gateway()
    waits(rig, 10)
    assert tally_of(rig).committed == 0
    rig.start_broker()
    rig.start_bridge()
    arrives(rig)
    settle(rig)


def test_a_broker_killed_and_restarted_loses_nothing(site: Site) -> None:
    rig = site(persistence=False)
    rig.start()
    waits(rig, 5)
    rig.broker.kill()
    waits(rig, tally_of(rig).enqueued + 10)
    rig.start_broker()
    arrives(rig)
    settle(rig)


def test_a_bridge_that_is_away_for_a_while_loses_nothing(site: Site) -> None:
    rig = site()
    rig.start()
    waits(rig, 5)
    rig.bridge.kill()
    waits(rig, tally_of(rig).enqueued + 10)
    rig.start_bridge()
    arrives(rig)
    settle(rig)


def test_a_gateway_killed_with_a_backlog_delivers_it_after_its_restart(site: Site) -> None:
    rig = site()
    rig.start_broker()
    rig.start_gateway()
    waits(rig, 10)
    rig.gateway.kill()
    backlog = tally_of(rig).waiting
    assert backlog >= 10
    rig.start_bridge()
    rig.start_gateway()
    arrives(rig)
    settle(rig)


def test_a_bridge_frozen_for_a_while_gets_everything_once(site: Site) -> None:
    rig = site()
    rig.start()
    waits(rig, 5)
    rig.bridge.signal(signal.SIGSTOP)
    waits(rig, tally_of(rig).enqueued + 10)
    rig.bridge.signal(signal.SIGCONT)
    arrives(rig)
    settle(rig)
