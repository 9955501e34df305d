"""A metered link, in real processes: budgets hold, across kills; urgent records flow; people can read why."""

import json
import urllib.request
from typing import Any

from hil.loopback.rig import Rig, eventually
from tests.e2e.conftest import Site
from tests.e2e.flow import status_of, waits
from tests.e2e.test_bad_input import gateway_command

BUDGET = 20_000
LIMITS: dict[str, Any] = {
    "records": {"budget": {"bytes": BUDGET, "per": "month"}},
    "snapshots": {"windows": [{"open": "0 0 29 2 *", "minutes": 1}]},
}


def metered(site: Site, **features: Any) -> Rig:
    rig = site(gateway={"metering": {"features": features}})
    rig.gateway_settings["gateway"]["time_zone"] = "Europe/Berlin"
    rig.write()
    return rig


def link(rig: Rig) -> dict[str, Any]:
    usage: dict[str, Any] = status_of(rig)["link_usage"]
    return usage


def depth(rig: Rig, name: str) -> int:
    found: int = status_of(rig)["outbox"]["classes"][name]["depth"]
    return found


def metrics_of(rig: Rig) -> str:
    with urllib.request.urlopen(status_of(rig)["metrics_url"], timeout=10) as answer:
        return str(answer.read().decode())


def test_a_month_budget_holds_over_kills_while_critical_records_flow(site: Site) -> None:
    rig = metered(site, **LIMITS)
    rig.start()
    for _ in range(3):
        eventually(lambda: link(rig)["held"].get("measure", {}).get("reason") == "budget", "the budget is used up", 60)
        rig.gateway.kill()
        rig.start_gateway()
    # What is left is too little for the next batch, and critical records, which are counted, take the rest of it.
    eventually(lambda: link(rig)["features"]["records"]["left_bytes"] == 0, "nothing is left")
    before = depth(rig, "measure")
    eventually(lambda: depth(rig, "measure") > before, "measures gather")
    eventually(lambda: depth(rig, "critical") == 0, "critical records flow")
    assert depth(rig, "bulk") > 0
    assert link(rig)["held"]["bulk"]["reason"] == "window"

    shown = gateway_command("outbox", "status", "--config", str(rig.gateway_file)).stdout
    assert "budget used up until" in shown
    assert "critical flows" in shown
    assert "window closed until" in shown
    assert 'sluice_link_bytes_total{direction="out",feature="records"}' in metrics_of(rig)
    eventually(lambda: 'sluice_link_held{class="measure"} 1.0' in metrics_of(rig), "the metric says that it is held")

    # A stop does not wait for what is held, and what is told afterwards comes from the file.
    assert rig.gateway.stop() == 0
    assert not rig.last_run()["drained"]
    off = json.loads(gateway_command("outbox", "status", "--json", "--config", str(rig.gateway_file)).stdout)
    assert off["running"] is False
    assert off["link_usage"]["held"]["measure"]["reason"] == "budget"
    rig.stop()


def test_without_limits_the_same_site_drains(site: Site) -> None:
    """The control of the test above."""
    rig = metered(site)
    rig.start()
    waits(rig, 50)
    usage = link(rig)
    assert usage["held"] == {}
    eventually(lambda: link(rig)["features"]["snapshots"]["sent_bytes"] > 0, "pictures flow")
    assert rig.gateway.stop() == 0
    assert rig.last_run()["drained"]
    rig.stop()


def test_pictures_that_the_budget_cannot_carry_are_not_kept_where_that_is_wished(site: Site) -> None:
    rig = metered(site, snapshots={"budget": {"bytes": 1, "per": "month"}})
    rig.gateway_settings["metering"]["snapshots_beyond_budget"] = "drop"
    rig.write()
    rig.start()
    waits(rig, 30)
    eventually(
        lambda: sum(each["dropped"].get("link-budget", 0) for each in status_of(rig)["pipelines"]) > 0,
        "pictures are left out and counted",
    )
    assert depth(rig, "bulk") == 0
    assert rig.gateway.stop() == 0
    rig.stop()
