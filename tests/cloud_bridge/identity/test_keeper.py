"""What takes effect without anybody asking: revocation lists, cuts, renewals, forgetting."""

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry

from cloud_bridge.errors import BrokerError
from cloud_bridge.identity.broker import CRL_LIFE, BrokerFiles, BrokerPlan, host_names
from cloud_bridge.identity.devices import due_cuts, note_certificate
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.events import MAX_UNPROVEN, Happening, note, prune_events
from cloud_bridge.identity.issuer import life_from, new_key, utc
from cloud_bridge.identity.keeper import Keeper, _hang_up
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.takeover import Takeover, connect_packet
from tests.cloud_bridge.identity.kit import Desk

DAY = 86_400


@dataclass
class FakeCutter:
    """Knob: `away`."""

    away: bool = False
    done: list[Takeover] = field(default_factory=list)

    def cut(self, takeover: Takeover) -> None:
        if self.away:
            raise BrokerError("not there")
        self.done.append(takeover)


@pytest.fixture
def files(desk: Desk, tmp_path: Path) -> BrokerFiles:
    files = BrokerFiles(tmp_path / "broker", desk.ca, desk.ca, server_seconds=30 * DAY)
    files.write_all(BrokerPlan(tmp_path / "broker", ("broker.example", "192.0.2.1")), [], utc(desk.clock()))
    return files


def keeper_of(desk: Desk, files: BrokerFiles | None = None, *cutters: FakeCutter) -> tuple[Keeper, CollectorRegistry]:
    registry = CollectorRegistry()
    keeper = Keeper(
        desk.db,
        IdentityMetrics(registry),
        root="sluice",
        event_days=365,
        files=files,
        cutters=cutters,
        clock=desk.clock,
    )
    return keeper, registry


def crl_of(files: BrokerFiles) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((files.directory / "crl.pem").read_bytes())


def test_a_revocation_reaches_the_list_with_the_next_round(desk: Desk, files: BrokerFiles) -> None:
    keeper, registry = keeper_of(desk, files)
    device = desk.enrolled()
    serial = x509.load_pem_x509_certificate(device.renew().certificate_chain.encode()).serial_number
    keeper.round()
    assert len(crl_of(files)) == 0
    desk.revoke("dock-7")
    keeper.round()
    assert serial in {one.serial_number for one in crl_of(files)}
    assert registry.get_sample_value("bridge_identity_revoked_certificates") == 2


def test_the_list_is_renewed_long_before_it_expires_and_not_every_round(desk: Desk, files: BrokerFiles) -> None:
    keeper, _ = keeper_of(desk, files)
    keeper.round()
    first = crl_of(files)
    desk.clock.pass_seconds(2)
    keeper.round()
    assert crl_of(files) == first
    desk.clock.pass_seconds(7 * 3600)
    keeper.round()
    assert crl_of(files).next_update_utc == utc(desk.clock()) + CRL_LIFE


def test_a_revoked_certificate_leaves_the_list_a_day_after_it_has_expired(desk: Desk, files: BrokerFiles) -> None:
    keeper, _ = keeper_of(desk, files)
    desk.enrolled()
    desk.revoke("dock-7")
    keeper.round()
    assert len(crl_of(files)) == 1
    desk.clock.pass_seconds(DAY + 3700)
    keeper.round()
    assert len(crl_of(files)) == 0


def test_certificates_of_the_broker_and_the_bridge_are_renewed_half_way(desk: Desk, files: BrokerFiles) -> None:
    keeper, _ = keeper_of(desk, files)
    place = files.directory
    before = {name: (place / name).read_bytes() for name in ("broker.pem", "bridge.pem", "broker-key.pem")}
    (place / "broker-key.pem").chmod(0o640)
    desk.clock.pass_seconds(14 * DAY)
    keeper.round()
    assert all((place / name).read_bytes() == data for name, data in before.items())
    desk.clock.pass_seconds(2 * DAY)
    keeper.round()
    assert all((place / name).read_bytes() != data for name, data in before.items())
    renewed = x509.load_pem_x509_certificate((place / "broker.pem").read_bytes())
    assert host_names(renewed) == ["broker.example", "192.0.2.1"]
    assert (place / "broker-key.pem").stat().st_mode & 0o777 == 0o640  # as the operator has set it


def test_a_revoked_device_is_cut_more_than_once_and_all_within_a_minute(desk: Desk) -> None:
    cutter = FakeCutter()
    keeper, registry = keeper_of(desk, None, cutter)
    desk.enrolled()
    desk.revoke("dock-7")
    for _ in range(30):
        keeper.round()
        desk.clock.pass_seconds(2)
    assert len(cutter.done) == 4
    assert all(one.banned and one.gateway == "dock-7" for one in cutter.done)
    assert registry.get_sample_value("bridge_identity_sessions_cut_total", {"why": "revoked"}) == 4


def test_a_connection_is_cut_when_the_certificate_it_may_rest_on_expires(desk: Desk) -> None:
    cutter = FakeCutter()
    keeper, _ = keeper_of(desk, None, cutter)
    device = desk.enrolled()
    desk.clock.pass_seconds(1800)
    device.renew()
    keeper.round()
    assert cutter.done == []
    desk.clock.pass_seconds(1801)
    keeper.round()
    assert [one.banned for one in cutter.done] == [False]  # it has a newer certificate: it may come back at once
    desk.clock.pass_seconds(1801)
    keeper.round()
    keeper.round()
    assert [one.banned for one in cutter.done] == [False, True]


def test_a_broker_that_is_away_gets_its_cuts_when_it_is_back(desk: Desk) -> None:
    here, away = FakeCutter(), FakeCutter(away=True)
    keeper, registry = keeper_of(desk, None, away, here)
    desk.enrolled()
    desk.revoke("dock-7")
    keeper.round()
    assert here.done  # the other broker does not wait
    assert registry.get_sample_value("bridge_identity_cuts_waiting") == 1
    away.away = False
    keeper.round()
    assert away.done
    assert registry.get_sample_value("bridge_identity_cuts_waiting") == 0


def test_one_broker_that_is_away_keeps_no_revoked_device_alive_at_another(desk: Desk) -> None:
    here, away = FakeCutter(), FakeCutter(away=True)
    keeper, _ = keeper_of(desk, None, away, here)
    for name in ("dock-7", "dock-8", "dock-9"):
        desk.enrolled(name)
        desk.revoke(name)
    keeper.round()
    assert {one.gateway for one in here.done} == {"dock-7", "dock-8", "dock-9"}


def test_a_device_is_cut_once_for_a_certificate_also_while_another_broker_is_away(desk: Desk) -> None:
    here, away = FakeCutter(), FakeCutter(away=True)
    keeper, _ = keeper_of(desk, None, here, away)
    device = desk.enrolled()
    desk.clock.pass_seconds(1800)
    device.renew()
    desk.clock.pass_seconds(1801)
    for _ in range(5):
        keeper.round()
        desk.clock.pass_seconds(2)
    assert len(here.done) == 1
    away.away = False
    keeper.round()
    assert (len(here.done), len(away.done)) == (1, 1)


def test_the_device_that_takes_a_name_over_is_not_told_to_be_absent(desk: Desk) -> None:
    cutter = FakeCutter()
    keeper, _ = keeper_of(desk, None, cutter)
    desk.enrolled()
    desk.device().enrol(desk.token("dock-7", replace=True))
    keeper.round()
    assert [one.banned for one in cutter.done] == [False]


def test_without_anybody_to_cut_nothing_piles_up(desk: Desk) -> None:
    keeper, _ = keeper_of(desk)
    desk.enrolled()
    desk.revoke("dock-7")
    desk.clock.pass_seconds(2 * 3600)
    keeper.round()
    with desk.db.transaction() as tx:
        assert due_cuts(tx, desk.clock(), 10) == []


def test_old_sessions_certificates_and_events_are_forgotten(desk: Desk) -> None:
    keeper, _ = keeper_of(desk)
    device = desk.enrolled()
    device.open_challenge()
    keeper.round()
    desk.clock.pass_seconds(400 * DAY)
    keeper.round()  # settles the certificates
    desk.clock.pass_seconds(700)
    keeper.round()
    with desk.db.transaction() as tx:
        for table in ("sessions", "certificates", "events"):
            assert tx.rows(f"SELECT count(*) FROM identity_{table}") == [(0,)], table
        assert tx.rows("SELECT count(*) FROM identity_devices") == [(1,)]


def test_a_directory_that_was_never_set_up_is_told_with_the_remedy(desk: Desk, tmp_path: Path) -> None:
    files = BrokerFiles(tmp_path / "nowhere", desk.ca, desk.ca, server_seconds=DAY)
    with pytest.raises(IdentityError, match="broker-config"):
        files.renew(utc(desk.clock()))
    keeper, _ = keeper_of(desk, files)
    keeper.round()  # is told in the log, and the rest goes on


def test_strangers_cannot_push_out_what_was_proven(desk: Desk) -> None:
    with desk.db.transaction() as tx:
        note(tx, Happening("dock-7", "wrong-pcr", "192.0.2.1", "", {"11": "00"}, proven=True), desk.clock())
        for number in range(MAX_UNPROVEN + 50):
            note(tx, Happening(f"x{number}", "unknown-device", "192.0.2.9", ""), desk.clock() + number)
        assert prune_events(tx, desk.clock() + MAX_UNPROVEN + 50, 365) == 50
        assert tx.rows("SELECT count(*) FROM identity_events WHERE proven = 1") == [(1,)]


def test_a_cut_keeps_the_session_of_a_device_that_may_come_back() -> None:
    stays = connect_packet(Takeover("gw-a", banned=False, at="", root="sluice"), "5")
    goes = connect_packet(Takeover("gw-a", banned=True, at="", root="sluice"), "5")
    assert stays[9] == 0x00  # no clean start
    assert goes[9] == 0x02
    assert connect_packet(Takeover("gw-a", banned=True, at="", root="sluice"), "3.1.1")[8] == 4


def test_a_certificate_is_remembered_until_its_end_to_the_second(desk: Desk) -> None:
    issued = desk.ca.device("dock-7", new_key().public_key(), life_from(utc(desk.clock()), seconds=60))
    with desk.db.transaction() as tx:
        note_certificate(tx, "dock-7", issued, desk.clock())
        assert due_cuts(tx, desk.clock() + 59 * 10**9, 10) == []
        assert len(due_cuts(tx, desk.clock() + 60 * 10**9, 10)) == 1


@pytest.mark.parametrize("left", ["{sleeper}", "0", "-1", "nothing", ""])
def test_what_a_killed_broker_has_left_in_its_pid_file_ends_no_other_program(tmp_path: Path, left: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            (tmp_path / "pid").write_text(left.format(sleeper=sleeper.pid))
            with pytest.raises(IdentityError, match=r"the broker of .*/pid"):
                _hang_up(tmp_path / "pid")
            assert sleeper.poll() is None
            os.kill(sleeper.pid, signal.SIGHUP)  # the control: what it would have got
            assert sleeper.wait(10) == -signal.SIGHUP
        finally:
            sleeper.kill()
