"""An authority outside of the bridge that answers, fails, hangs and lies, and what devices notice of it."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_bridge.config import CommandIssuer, Identity, PluginIssuer
from cloud_bridge.configload import InvalidConfigError, parse
from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.devices import denied_gateways
from cloud_bridge.identity.errors import AuthorityError, IdentityError
from cloud_bridge.identity.foreign import PAUSE_SECONDS, Certificates, ForeignIssuer
from cloud_bridge.identity.issued import ANSWER_CHECKS, check_key
from cloud_bridge.identity.issuer import CertificateRequest, Life, LocalCa, life_from, new_key, pem, utc
from cloud_bridge.identity.issuers import described, open_issuer
from tests.cloud_bridge.identity.kit import TRUST_DOMAIN, Clock, Desk, desk_at
from tests.simulators.attested_device import RefusedByBridgeError, csr_of
from tests.simulators.organisation_ca import OrganisationCa
from tests.simulators.waiting import wait_for


@dataclass
class Elsewhere:
    """An authority of somebody else, in memory. Knobs: `fault`, which is raised; `instead`, which signs instead."""

    ca: LocalCa
    fault: Exception | None = None
    instead: Callable[[CertificateRequest], bytes] | None = None
    asked: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "the authority elsewhere"

    def sign(self, request: CertificateRequest) -> bytes:
        self.asked.append(request.gateway)
        if self.fault is not None:
            raise self.fault
        if self.instead is not None:
            return self.instead(request)
        return self.ca.device(request.gateway, request.key, request.life).chain_pem


@dataclass
class Site:
    elsewhere: Elsewhere
    issuer: ForeignIssuer
    desk: Desk

    def events(self) -> list[Mapping[str, str]]:
        return [one.happening.evidence for one in self.desk.events() if one.happening.kind == "unavailable"]


def made(tmp_path: Path, **knobs: Any) -> tuple[Elsewhere, ForeignIssuer, Clock]:
    clock = Clock()
    ca = LocalCa.open(tmp_path / "elsewhere", TRUST_DOMAIN, utc(clock()))
    elsewhere = Elsewhere(ca)
    anchors = tmp_path / "anchors.pem"
    anchors.write_bytes(ca.bundle_pem)
    issuer = ForeignIssuer(
        elsewhere, Certificates(anchors, "trust_anchors"), clock=clock, monotonic=clock.monotonic, **knobs
    )
    return elsewhere, issuer, clock


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    elsewhere, issuer, clock = made(tmp_path)
    with desk_at(tmp_path / "bridge", clock=clock, issuer=issuer) as desk:
        yield Site(elsewhere, issuer, desk)


def test_a_device_gets_the_certificate_of_another_authority_than_the_bridges(site: Site) -> None:
    granted = site.desk.enrolled().renew()
    (leaf,) = x509.load_pem_x509_certificates(granted.certificate_chain.encode())
    leaf.verify_directly_issued_by(site.elsewhere.ca.devices.certificate)
    with pytest.raises(InvalidSignature):
        leaf.verify_directly_issued_by(site.desk.ca.devices.certificate)
    assert granted.bundle == site.desk.ca.services_pem.decode()  # whom devices believe is not theirs to say
    assert granted.spiffe_id == "spiffe://sluice.test/gateway/dock-7"


def test_while_it_is_away_a_device_loses_nothing_and_comes_back(site: Site) -> None:
    device = site.desk.enrolled()
    before = device.renew()
    site.elsewhere.fault = AuthorityError("failed", "the vault is sealed")
    with pytest.raises(RefusedByBridgeError, match="gave none") as caught:
        device.renew()
    assert caught.value.refusal.code == "unavailable"
    assert caught.value.refusal.retry_after_seconds == 15
    assert site.events() == [{"authority": "the vault is sealed"}]
    failed = site.desk.registry.get_sample_value("bridge_identity_authority_failed_total", {"fault": "failed"})
    assert failed == 1
    site.elsewhere.fault = None
    after = device.renew()
    assert after.not_after_ns == before.not_after_ns
    with site.desk.db.transaction() as tx:
        assert denied_gateways(tx, site.desk.clock()) == []  # what it holds is as good as before


def test_a_claim_is_not_used_up_by_an_authority_that_fails(site: Site) -> None:
    device = site.desk.device()
    site.desk.approve_state_of(device)
    token = site.desk.token("dock-7")
    site.elsewhere.fault = AuthorityError("failed", "not now")
    with pytest.raises(RefusedByBridgeError, match="unavailable"):
        device.enrol(token)
    site.elsewhere.fault = None
    device.enrol(token)


def test_a_certificate_for_another_key_is_given_to_nobody_and_told(site: Site) -> None:
    device = site.desk.enrolled()
    other = new_key().public_key()
    site.elsewhere.instead = lambda asked: site.elsewhere.ca.device(asked.gateway, other, asked.life).chain_pem
    with pytest.raises(RefusedByBridgeError, match="unavailable"):
        device.renew()
    assert "another key" in site.events()[0]["authority"]


def test_control_without_the_check_the_device_would_get_it(tmp_path: Path) -> None:
    checks = [check for check in ANSWER_CHECKS if check is not check_key]
    elsewhere, issuer, clock = made(tmp_path, answer_checks=checks)
    other = new_key().public_key()
    elsewhere.instead = lambda asked: elsewhere.ca.device(asked.gateway, other, asked.life).chain_pem
    with desk_at(tmp_path / "bridge", clock=clock, issuer=issuer) as desk:
        granted = desk.enrolled().renew()
    assert x509.load_pem_x509_certificate(granted.certificate_chain.encode()).public_key() == other


def another_name(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Ask for the bridge's name beside one's own."""
    names = [x509.UniformResourceIdentifier("spiffe://sluice.test/bridge")]
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dock-7")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("protected", [True, False])
def test_a_request_for_another_name_never_reaches_the_authority(tmp_path: Path, protected: bool) -> None:
    elsewhere, issuer, clock = made(tmp_path, **({} if protected else {"request_checks": ()}))
    with desk_at(tmp_path / "bridge", clock=clock, issuer=issuer) as desk:
        device = desk.enrolled()
        elsewhere.asked.clear()
        device.csr = another_name
        if protected:
            with pytest.raises(RefusedByBridgeError, match="asks for other names"):
                device.renew()
        else:
            device.renew()
    assert elsewhere.asked == ([] if protected else ["dock-7"])


def test_a_serial_number_is_taken_once(site: Site) -> None:
    """Brokers and the bridge know what was revoked by nothing else."""
    device = site.desk.enrolled()
    authority = site.elsewhere.ca.devices

    def counts_from_seven(asked: CertificateRequest) -> bytes:
        like = x509.load_pem_x509_certificate(site.elsewhere.ca.device(asked.gateway, asked.key, asked.life).chain_pem)
        builder = (
            x509.CertificateBuilder()
            .subject_name(like.subject)
            .issuer_name(like.issuer)
            .public_key(asked.key)
            .serial_number(7)
            .not_valid_before(like.not_valid_before_utc)
            .not_valid_after(like.not_valid_after_utc)
        )
        for one in like.extensions:
            builder = builder.add_extension(one.value, one.critical)
        return pem(builder.sign(authority.key, hashes.SHA256()))

    site.elsewhere.instead = counts_from_seven
    device.renew()
    with pytest.raises(RefusedByBridgeError, match="unavailable"):
        device.renew()
    assert "serial number 7 a second time" in site.events()[0]["authority"]


def request(clock: Clock, gateway: str = "dock-7") -> CertificateRequest:
    key = new_key()
    life = life_from(utc(clock()), seconds=3600, backdate_seconds=120)
    name = f"spiffe://{TRUST_DOMAIN}/gateway/{gateway}"
    return CertificateRequest(gateway, name, csr_of(key, gateway), key.public_key(), life)


def test_an_authority_that_hangs_is_left_alone_for_a_while(tmp_path: Path) -> None:
    elsewhere, issuer, clock = made(tmp_path)
    elsewhere.fault = AuthorityError("away", "has not ended within 10 s")
    with pytest.raises(AuthorityError, match="has not ended"):
        issuer.certify(request(clock))
    elsewhere.fault = None
    for _ in range(20):
        with pytest.raises(AuthorityError, match="did not answer a moment ago"):
            issuer.certify(request(clock, "dock-8"))
    assert elsewhere.asked == ["dock-7"]
    clock.pass_seconds(PAUSE_SECONDS)
    issuer.certify(request(clock, "dock-8"))


def test_one_device_that_is_refused_keeps_no_other_out(tmp_path: Path) -> None:
    elsewhere, issuer, clock = made(tmp_path)
    elsewhere.fault = AuthorityError("failed", "dock-7 is on our list")
    with pytest.raises(AuthorityError):
        issuer.certify(request(clock))
    elsewhere.fault = None
    issuer.certify(request(clock, "dock-8"))


def test_no_more_are_asked_at_once_than_was_agreed(tmp_path: Path) -> None:
    elsewhere, issuer, clock = made(tmp_path, at_once=2)
    inside, most, lock, go = [0], [0], threading.Lock(), threading.Event()

    def slow(asked: CertificateRequest) -> bytes:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        go.wait(10)
        with lock:
            inside[0] -= 1
        return elsewhere.ca.device(asked.gateway, asked.key, asked.life).chain_pem

    elsewhere.instead = slow
    done: list[str] = []

    def certify(number: int) -> None:
        done.append(issuer.certify(request(clock, f"dock-{number}")).serial)

    threads = [threading.Thread(target=certify, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    wait_for(lambda: inside[0] == 2, what="two are asking")
    go.set()
    for each in threads:
        each.join(20)
    assert most == [2]
    assert len(set(done)) == 6


def test_troubles_are_told_when_they_begin_and_when_the_last_device_is_served_again(tmp_path: Path) -> None:
    elsewhere, issuer, clock = made(tmp_path)
    with structlog.testing.capture_logs() as told:
        elsewhere.fault = AuthorityError("failed", "sealed")
        for gateway in ("dock-7", "dock-8", "dock-7"):
            with pytest.raises(AuthorityError):
                issuer.certify(request(clock, gateway))
        elsewhere.fault = None
        for gateway in ("dock-9", "dock-7", "dock-8", "dock-8"):
            issuer.certify(request(clock, gateway))
    assert [one["event"] for one in told] == ["authority_failing", "authority_works_again"]
    assert told[0]["error"] == "sealed"


def test_a_device_that_never_comes_back_does_not_keep_the_trouble_open(tmp_path: Path) -> None:
    elsewhere, issuer, clock = made(tmp_path)
    with structlog.testing.capture_logs() as told:
        elsewhere.fault = AuthorityError("failed", "sealed")
        with pytest.raises(AuthorityError):
            issuer.certify(request(clock))
        elsewhere.fault = None
        clock.pass_seconds(3601)
        issuer.certify(request(clock, "dock-8"))
    assert [one["event"] for one in told] == ["authority_failing", "authority_works_again"]


def test_anchors_that_change_are_read_again_and_bad_ones_are_named(tmp_path: Path) -> None:
    _, issuer, clock = made(tmp_path)
    file = tmp_path / "anchors.pem"
    before = issuer.bundle_pem
    newer = LocalCa.open(tmp_path / "newer", TRUST_DOMAIN, utc(clock()))
    file.write_bytes(before + newer.bundle_pem)
    assert issuer.bundle_pem == before + newer.bundle_pem
    for content in (b"", b"junk"):
        file.write_bytes(content)
        with pytest.raises(IdentityError, match=r"trust_anchors: .*anchors\.pem: .*PEM"):
            issuer.certify(request(clock))
    file.unlink()
    with pytest.raises(IdentityError, match=r"trust_anchors: .*anchors\.pem: No such file"):
        _ = issuer.until


# ---- the authority's own list of what was revoked ---------------------------------------------------------


@pytest.fixture
def organisation(tmp_path: Path) -> OrganisationCa:
    return OrganisationCa(tmp_path / "organisation")


def issuer_of(organisation: OrganisationCa) -> ForeignIssuer:
    anchors = Certificates(organisation.anchors, "trust_anchors")
    signer = Elsewhere(LocalCa.open(organisation.home / "unused", TRUST_DOMAIN, utc(Clock()())))
    return ForeignIssuer(signer, anchors, revocations=organisation.list)


NO_LIFE = Life(utc(0), utc(0))


def test_a_list_is_handed_on_when_an_anchor_has_signed_it_and_it_is_good(organisation: OrganisationCa) -> None:
    issuer = issuer_of(organisation)
    handed_on = issuer.crl((), NO_LIFE)
    assert handed_on is not None
    assert x509.load_pem_x509_crl(handed_on) == x509.load_pem_x509_crl(organisation.list.read_bytes())


def test_a_list_that_would_lock_everybody_out_is_refused(organisation: OrganisationCa, tmp_path: Path) -> None:
    issuer = issuer_of(organisation)
    good = organisation.list.read_bytes()
    organisation.write_list(seconds=1)
    late = x509.load_pem_x509_crl(organisation.list.read_bytes()).next_update_utc
    assert late is not None
    stale = ForeignIssuer(
        Elsewhere(LocalCa.open(tmp_path / "x", TRUST_DOMAIN, utc(Clock()()))),
        Certificates(organisation.anchors, "trust_anchors"),
        revocations=organisation.list,
        clock=lambda: int(late.timestamp() + 1) * 10**9,
    )
    with pytest.raises(AuthorityError, match="would let nobody in"):
        stale.crl((), NO_LIFE)
    organisation.list.write_bytes(good.replace(b"X509 CRL", b"X509 CRT"))
    with pytest.raises(AuthorityError, match="holds no revocation list"):
        issuer.crl((), NO_LIFE)
    organisation.list.write_bytes(good[:60] + good[90:])
    with pytest.raises(AuthorityError, match="revocation lists, PEM"):
        issuer.crl((), NO_LIFE)
    organisation.list.unlink()
    with pytest.raises(AuthorityError, match="No such file"):
        issuer.crl((), NO_LIFE)


def test_a_list_that_somebody_else_has_signed_is_refused(organisation: OrganisationCa, tmp_path: Path) -> None:
    impostor = OrganisationCa(tmp_path / "impostor")  # under the same names
    organisation.list.write_bytes(impostor.list.read_bytes())
    with pytest.raises(AuthorityError, match="signed by nobody in"):
        issuer_of(organisation).crl((), NO_LIFE)


# ---- chosen by the configuration --------------------------------------------------------------------------

CONFIGURED = "identity: {trust_domain: sluice.test, issuer: {type: %s, trust_anchors: anchors.pem, %s}}"


def settings_of(kind: str, keys: str, directory: Path) -> Identity:
    found = parse(CONFIGURED % (kind, keys), directory=directory).identity
    assert found is not None
    return found


def test_paths_of_an_authority_are_beside_the_file(tmp_path: Path) -> None:
    chosen = settings_of("command", "command: [/usr/bin/sign], revocations: devices.crl", tmp_path).issuer
    assert isinstance(chosen, CommandIssuer)
    assert chosen.trust_anchors == tmp_path / "anchors.pem"
    assert chosen.revocations == tmp_path / "devices.crl"
    with pytest.raises(InvalidConfigError, match="did you mean `timeout_seconds`"):
        settings_of("command", "command: [/usr/bin/sign], timeout_second: 3", tmp_path)


def test_without_a_choice_the_bridge_signs_itself(desk: Desk) -> None:
    assert open_issuer(desk.settings, desk.ca, desk.clock) is desk.ca
    assert described(desk.settings) == "local"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an entry point, as pip would have installed it."""
    place = tmp_path / "site"
    about = place / "example_signer-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: example-signer\nVersion: 1\n")
    points = "[sluice.issuers]\nexample = example_signer:Example\nbroken = example_signer:Nothing\n"
    (about / "entry_points.txt").write_text(points)
    (place / "example_signer.py").write_text(
        "from cloud_bridge.errors import ConfigError\n"
        "class Example:\n"
        "    def __init__(self, trust_domain, options):\n"
        "        if 'chain' not in options:\n"
        "            raise ConfigError('identity.issuer.options: chain is needed')\n"
        "        self.trust_domain, self.options = trust_domain, options\n"
        "    def sign(self, request):\n"
        "        return open(self.options['chain'], 'rb').read() + self.trust_domain.encode()\n"
    )
    monkeypatch.syspath_prepend(place)
    return place


@pytest.mark.usefixtures("plugin")
def test_an_entry_point_gets_its_options_and_its_bugs_are_no_bugs_of_the_bridge(tmp_path: Path, desk: Desk) -> None:
    settings = settings_of("plugin", f"name: example, options: {{chain: {tmp_path}/chain}}", tmp_path)
    assert isinstance(settings.issuer, PluginIssuer)
    (tmp_path / "anchors.pem").write_bytes(desk.ca.bundle_pem)
    issuer = open_issuer(settings, desk.ca, desk.clock)
    with pytest.raises(AuthorityError, match=r"the plugin example broke: FileNotFoundError") as caught:
        issuer.certify(request(desk.clock))
    assert caught.value.fault == "failed"
    (tmp_path / "chain").write_bytes(b"junk")
    with pytest.raises(AuthorityError, match="PEM"):
        issuer.certify(request(desk.clock))
    assert described(settings) == "plugin example"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ("name: nothing", "known: broken, example"),
        ("name: broken", "cannot be loaded"),
        ("name: example", "chain is needed"),
    ],
)
def test_an_entry_point_that_cannot_be_had_is_a_mistake_in_the_configuration(
    keys: str, remedy: str, tmp_path: Path, desk: Desk
) -> None:
    with pytest.raises(ConfigError, match=remedy):
        open_issuer(settings_of("plugin", keys, tmp_path), desk.ca, desk.clock)


def test_a_command_that_signs_is_opened_without_being_asked(tmp_path: Path, desk: Desk) -> None:
    settings = settings_of("command", f"command: {json.dumps([f'{tmp_path}/sign'])}", tmp_path)
    issuer = open_issuer(settings, desk.ca, desk.clock)
    assert not issuer.lists_revoked
    assert issuer.crl((), NO_LIFE) is None
    assert described(settings) == f"command {tmp_path}/sign"
