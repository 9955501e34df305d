"""C18: a broker whose certificate is expired, too early, of another host, of another CA, or revoked."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hil.loopback.rig import eventually
from hil.loopback.tally import tally_of
from tests.chaos.appliance import Appliance, appliances
from tests.chaos.experiment import Experiment
from tests.chaos.secured import SecuredBroker
from tests.simulators.authority import DAY, Authority

RECOVERY_SECONDS = 60.0


@dataclass
class Site:
    """One gateway with a secured broker, a bridge behind it, and who signs for it."""

    directory: Path
    authority: Authority
    broker: SecuredBroker
    gateway: Appliance

    def cloud(self) -> dict[str, Any]:
        """Return what the gateway says of its connection."""
        found: dict[str, Any] = self.gateway.status().get("cloud") or {}
        return found


@contextmanager
def sites(
    experiment: Experiment, *, second: bool = False, crl_file: Path | None = None
) -> Iterator[tuple[Site, list[SecuredBroker]]]:
    """Bring one up, with all in order; nothing of it is left afterwards."""
    directory = experiment.directory
    authority = Authority(directory / "ca", "site")
    with ExitStack() as stack:
        brokers = [
            stack.enter_context(SecuredBroker(directory / name, authority))
            for name in ("first", *(("second",) if second else ()))
        ]
        settings: list[dict[str, Any]] = [
            {"url": each.secure_url, "ca_file": str(authority.ca_file), "keepalive_seconds": 5} for each in brokers
        ]
        if crl_file is not None:
            settings[0]["crl_file"] = str(crl_file)
        gateway = Appliance(directory / "site", settings, fail_back_seconds=2.0)
        stack.enter_context(appliances(gateway))
        gateway.rig.bridge_settings["brokers"] = [{"url": each.plain_url} for each in brokers]
        gateway.rig.write()
        gateway.rig.start_bridge()
        gateway.start()
        site = Site(directory, authority, brokers[0], gateway)
        arrives(site)
        yield site, brokers


def arrives(site: Site, seconds: float = RECOVERY_SECONDS) -> None:
    """Wait until what is there by now has reached the bridge."""
    goal = tally_of(site.gateway.rig).enqueued
    eventually(lambda: tally_of(site.gateway.rig).committed >= max(goal, 5), "the cloud has caught up", seconds)


def ends_well(site: Site) -> None:
    """Stop, and check that each record is there once."""
    rig = site.gateway.rig
    rig.gateway.stop(60.0)
    eventually(lambda: tally_of(rig).lost == 0, "everything arrived")
    counts = tally_of(rig)
    assert (counts.waiting, counts.duplicates, counts.evicted) == (0, 0, 0)
    site.gateway.is_quiet()
    for log in (rig.gateway.log, rig.bridge.log):
        assert "PRIVATE KEY" not in log.read_text()


def expired(site: Site) -> None:
    site.authority.issue(site.broker.certificate_file, begins_in=-9 * DAY, ends_in=-2 * DAY)


def too_early(site: Site) -> None:
    site.authority.issue(site.broker.certificate_file, begins_in=2 * DAY, ends_in=9 * DAY)


def wrong_host(site: Site) -> None:
    site.authority.issue(site.broker.certificate_file, host="broker.example")


def foreign(site: Site) -> None:
    Authority(site.directory / "foreign", "site").issue(site.broker.certificate_file)


def revoked(site: Site) -> None:
    site.authority.revoke(site.authority.issue(site.broker.certificate_file))


def renewed(site: Site) -> None:
    site.authority.issue(site.broker.certificate_file)


def rotated(site: Site) -> None:
    """The CA is another one now; the gateway is given its certificate in the same file."""
    site.authority = Authority(site.directory / "rotated", "another")
    site.authority.issue(site.broker.certificate_file)


FAULTS = [
    (expired, ("expired", "the clock here says", "renew")),
    (too_early, ("not yet valid", "the clock here says")),
    (wrong_host, ("mismatch", "`url`")),
    (foreign, ("certificate", "`ca_file`")),
    (revoked, ("revoked", "new certificate")),
]


@pytest.mark.parametrize(("spoil", "words"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_c18_a_bad_certificate_keeps_the_data_says_why_and_drains_after_renewal(
    experiment: Experiment, spoil: Callable[[Site], None], words: tuple[str, ...]
) -> None:
    crl_file = experiment.directory / "ca" / "site.crl" if spoil is revoked else None
    with sites(experiment, crl_file=crl_file) as (site, _):
        spoil(site)
        site.broker.restart()
        eventually(lambda: site.cloud().get("state") == "refused", "the certificate is refused")
        assert all(word in site.cloud()["reason"] for word in words), site.cloud()
        before = tally_of(site.gateway.rig)
        with site.gateway.answering("motor"):
            eventually(lambda: tally_of(site.gateway.rig).enqueued >= before.enqueued + 10, "the edge goes on")
        counts = tally_of(site.gateway.rig)
        assert counts.committed == before.committed, "nothing went to a broker that is not believed"
        assert counts.waiting >= counts.enqueued - counts.committed
        assert site.gateway.metric("partition_state") == 2
        tries = [line for line in site.gateway.logged("mqtt_not_connected") if "not believed" in line["reason"]]
        assert len(tries) == 1, "told when it begins, not each time"
        renewed(site)
        site.broker.restart()
        arrives(site)
        ends_well(site)


def test_c18_a_rotated_ca_is_believed_once_its_certificate_is_there_without_a_restart(experiment: Experiment) -> None:
    with sites(experiment) as (site, _):
        known = site.authority.ca_file
        rotated(site)
        site.broker.restart()
        eventually(lambda: "`ca_file`" in site.cloud().get("reason", ""), "the new CA is not known yet")
        pid = site.gateway.rig.gateway.pid
        fresh = known.with_suffix(".new")
        fresh.write_bytes(site.authority.ca_file.read_bytes())
        fresh.replace(known)
        arrives(site)
        assert site.gateway.rig.gateway.pid == pid
        ends_well(site)


def test_c18_a_bad_certificate_leads_to_the_second_broker_and_its_renewal_back_to_the_first(
    experiment: Experiment,
) -> None:
    with sites(experiment, second=True) as (site, (first, second)):
        expired(site)
        first.restart()
        eventually(lambda: site.cloud().get("broker") == second.secure_url, "the second broker is used", 30.0)
        eventually(lambda: site.cloud()["state"] == "connected", "it takes the connection")
        arrives(site)
        time.sleep(3.0)  # longer than the fail-back looks: it must not leave for what it does not believe
        assert (site.cloud()["broker"], site.cloud()["state"]) == (second.secure_url, "connected")
        renewed(site)
        first.restart()
        eventually(lambda: site.cloud().get("broker") == first.secure_url, "the first is used again", 30.0)
        arrives(site)
        ends_well(site)


def test_c18_the_control_that_checks_nothing_sends_to_a_stranger(experiment: Experiment) -> None:
    """The same fault without the check: the records reach whoever answers, which the invariant above forbids."""
    with sites(experiment) as (site, _):
        foreign(site)
        site.broker.restart()
        eventually(lambda: site.cloud().get("state") == "refused", "the certificate is refused")
        committed = tally_of(site.gateway.rig).committed
        rig = site.gateway.rig
        rig.gateway.kill()
        at = rig.gateway.command.index("gateway")
        rig.gateway.command[at : at + 1] = ["tests.simulators.careless_gateway", "believes-anyone"]
        rig.start_gateway()
        eventually(lambda: tally_of(rig).committed > committed, "records went to a stranger")
