"""A changed configuration is taken over on SIGHUP if it can be used, and no record is lost or told twice by it."""

import signal
from typing import Any

import pytest

from hil.loopback.rig import Rig, eventually
from tests.e2e.conftest import Site
from tests.e2e.flow import goes_on, logged, settle, status_of, statuses, waits

pytestmark = [pytest.mark.slow, pytest.mark.net]


@pytest.fixture
def rig(site: Site) -> Rig:
    made = site()
    made.start()
    waits(made, 20)
    return made


def change(rig: Rig, **pipelines: dict[str, Any] | None) -> None:
    """Write the file again, with pipelines added, or taken away where they are None."""
    present = rig.gateway_settings["pipelines"]
    rig.gateway_settings["pipelines"] = {
        name: settings for name, settings in {**present, **pipelines}.items() if settings is not None
    }
    rig.write()


def runs(rig: Rig) -> set[str]:
    """Name its pipelines; none while it does not answer."""
    status = rig.gateway_status()
    return {each["pipeline"] for each in status["pipelines"]} if status is not None else set()


def asked(rig: Rig, event: str) -> list[dict[str, Any]]:
    before = len(logged(rig, event))
    rig.gateway.signal(signal.SIGHUP)
    eventually(lambda: len(logged(rig, event)) > before, f"the log says {event}")
    return logged(rig, event)[before:]


def test_a_valid_change_is_taken_over_by_the_same_process_without_a_loss(rig: Rig) -> None:
    pid, epoch = rig.gateway.pid, status_of(rig)["outbox"]["epoch"]
    settings = rig.gateway_settings["pipelines"]
    change(rig, second=settings["motor"], machine=None)
    (said,) = asked(rig, "reload_begins")
    assert said["changed"] == ["pipelines.machine", "pipelines.second"]
    eventually(lambda: runs(rig) == {"motor", "second"}, "it runs with it")
    assert rig.gateway.pid == pid
    assert rig.gateway.running
    goes_on(rig, "second")
    assert status_of(rig)["outbox"]["epoch"] == epoch
    assert [line["begins_anew"] for line in logged(rig, "gateway_stopped")] == [True]
    settle(rig)


def test_what_cannot_be_used_changes_nothing_and_is_told_with_its_place(rig: Rig) -> None:
    settings = rig.gateway_settings["pipelines"]["motor"]
    change(rig, broken={**settings, "source": "nowhere"})
    (said,) = asked(rig, "reload_refused")
    assert "nowhere" in str(said["problems"])
    assert "pipelines.broken" in str(said["problems"])
    goes_on(rig, "motor")
    assert set(statuses(rig)) == {"motor", "machine"}
    rig.gateway_file.write_text("}{")
    assert asked(rig, "reload_refused")
    rig.gateway_file.unlink()
    assert asked(rig, "reload_refused")
    change(rig, broken=None)
    assert asked(rig, "reload_changed_nothing")
    assert len(logged(rig, "gateway_started")) == 1
    settle(rig)


def test_requests_without_end_neither_stop_it_nor_lose_a_record(rig: Rig) -> None:
    change(rig, second=rig.gateway_settings["pipelines"]["motor"])
    for _ in range(200):
        rig.gateway.signal(signal.SIGHUP)
    eventually(lambda: len(logged(rig, "gateway_started")) == 2, "it has begun anew")
    for _ in range(200):
        rig.gateway.signal(signal.SIGHUP)
    eventually(lambda: "second" in runs(rig), "it runs with it")
    goes_on(rig, "second")
    assert rig.gateway.running
    assert len(logged(rig, "gateway_started")) == 2
    settle(rig)


def test_who_stops_it_while_it_begins_anew_has_it_stopped(rig: Rig) -> None:
    change(rig, second=rig.gateway_settings["pipelines"]["motor"])
    rig.gateway.signal(signal.SIGHUP)
    eventually(lambda: bool(logged(rig, "gateway_stopping")), "it is on its way")
    # Without a handler, between its two lives, the signal itself ends it.
    assert rig.gateway.stop() in (0, -signal.SIGTERM)
    rig.start_gateway()
    eventually(lambda: "second" in runs(rig), "the next start has it")
    settle(rig)
