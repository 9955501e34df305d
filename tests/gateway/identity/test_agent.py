"""The identity agent against the bridge's real identity service, over real TLS."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from nacl.public import PrivateKey, SealedBox

from cloud_bridge.identity.app import create_app
from cloud_bridge.identity.issuer import key_pem, life_from, new_key, utc
from cloud_bridge.identity.service import Anchors
from cloud_bridge.serving import HttpServer
from gateway.config import Identity
from gateway.identity.agent import IdentityAgent, Outcomes
from gateway.identity.clock import TrustedClock
from gateway.identity.errors import IdentityError, IdentityRefusedError, IdentityUntrustedError
from gateway.identity.keys import EnrolmentKeys, Proof
from gateway.identity.record import IdentityFiles, IdentityRecord
from gateway.identity.server import IdentityServer
from gateway.identity.tls import blind_context, fresh_key
from gateway.wire.identity import (
    Challenge,
    ChallengeRequest,
    ClaimCode,
    Credential,
    EnrolRequest,
    Grant,
    Level,
    binding,
)
from hil.loopback.children import free_port
from tests.cloud_bridge.identity.kit import SECOND, Clock, Desk
from tests.simulators.attested_device import SoftTpm

GATEWAY = "dock-7"
DAY = 86_400.0


@dataclass
class TpmKeys:
    """An attestor over a simulated TPM."""

    tpm: SoftTpm = field(default_factory=SoftTpm)
    box: PrivateKey = field(default_factory=PrivateKey.generate)
    level: Level = "tpm"

    def enrolment_keys(self) -> EnrolmentKeys:
        return EnrolmentKeys(self.tpm.ak_public, self.tpm.ek_public)

    def recipient(self) -> bytes:
        return bytes(self.box.public_key)

    def activate(self, credential: Credential) -> bytes:
        return self.tpm.activate(credential)

    def prove(self, challenge: Challenge, csr: bytes, recipient: bytes, gateway: str) -> Proof:
        attest, signature = self.tpm.quote(binding(challenge.nonce, csr, recipient, gateway), challenge.pcrs)
        return Proof(signature, attest, self.tpm.pcrs(challenge.pcrs))


@dataclass
class Told:
    """What the agent tells its surroundings."""

    renewed: int = 0
    grants: list[Grant] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def outcomes(self) -> Outcomes:
        async def granted(grants: Sequence[Grant]) -> None:
            self.grants = list(grants)

        return Outcomes(renewed=self._renewed, granted=granted, noticed=lambda code, _s, _d: self.notices.append(code))

    def _renewed(self) -> None:
        self.renewed += 1


@dataclass
class Site:
    """A bridge that listens, and a device's state directory."""

    desk: Desk
    url: str
    state: Path
    keys: TpmKeys = field(default_factory=TpmKeys)
    told: Told = field(default_factory=Told)
    knobs: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> IdentityFiles:
        return IdentityFiles(self.state)

    def claim(self, *, replace: bool = False) -> None:
        code = ClaimCode(token=self.desk.token(GATEWAY, replace=replace), fingerprint=self.desk.ca.services_fingerprint)
        self.files.leave_claim(code.text())

    def approve(self) -> None:
        self.desk.approve("golden", self.keys.tpm.pcrs([4, 7, 11]))

    def agent(self, **knobs: Any) -> IdentityAgent:
        self.told = Told()
        settings = Identity(url=self.url, **self.knobs)
        return IdentityAgent(settings, GATEWAY, self.files, self.keys, self.told.outcomes(), draw=lambda: 0.0, **knobs)


@asynccontextmanager
async def running(work: Callable[[], Awaitable[None]]) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(work())  # noqa: TID251 - a test has no daemon
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def enrolled(site: Site, **knobs: Any) -> AsyncIterator[IdentityAgent]:
    """Approve the state of the device, leave a claim, and run its agent until it has its first certificate."""
    site.approve()
    site.claim()
    agent = site.agent(**knobs)
    async with running(agent.run):
        await becomes_valid(agent)
        yield agent


async def becomes_valid(agent: IdentityAgent) -> None:
    await until(lambda: agent.status().state == "valid", "the certificate")


async def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def listening(desk: Desk, port: int, *, life_days: tuple[float, float] = (-1.0, 30.0)) -> AsyncIterator[None]:
    """Serve the desk over TLS, with a certificate that is valid between two days from now."""
    now = time.time_ns()
    first, last = life_days
    life = life_from(utc(now + int(first * DAY * SECOND)), seconds=(last - first) * DAY, backdate_seconds=0)
    key = new_key()
    issued = desk.ca.server(("127.0.0.1", "localhost"), key.public_key(), life)
    file = desk.directory / f"listener-{port}.pem"
    file.write_bytes(key_pem(key) + issued.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = HttpServer(
        "identity", create_app(desk.service, desk.settings, desk.metrics), "127.0.0.1", port, tls=context
    )

    async def reachable() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    async with running(server.run):
        while not await reachable():
            await asyncio.sleep(0.01)
        yield
        server.stop()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    directory = tmp_path / "bridge"
    directory.mkdir(mode=0o700)
    desk = Desk(directory, clock=Clock(time.time_ns()))
    port = free_port()
    async with listening(desk, port):
        yield Site(desk, f"https://127.0.0.1:{port}", tmp_path / "state")


async def test_a_device_with_a_claim_enrols_and_holds_a_certificate(site: Site) -> None:
    async with enrolled(site) as agent:
        status = agent.status()
    assert status.spiffe_id == f"spiffe://sluice.test/gateway/{GATEWAY}"
    assert status.boot_state == "golden"
    assert 0 < (status.expires_in_seconds or 0) <= 3600
    assert site.told.renewed == 1
    assert site.files.read_claim() is None  # it is good for one enrolment
    context = agent.credentials.tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_no_file_of_the_device_holds_a_private_key(site: Site) -> None:
    async with enrolled(site):
        pass
    assert keys_in(site.state) == []
    # The search finds a key that a program leaves there, also beside other things.
    (site.state / "identity" / "careless.pem").write_bytes(b"# mine\n" + fresh_key(GATEWAY, "sluice.test")[0])
    assert keys_in(site.state) == ["careless.pem"]


def keys_in(directory: Path) -> list[str]:
    """Return the files that hold a private key, of all files, of which there must be some."""
    kept = [file for file in directory.rglob("*") if file.is_file()]
    assert kept
    return [file.name for file in kept if b"PRIVATE KEY" in file.read_bytes()]


async def test_a_restarted_device_needs_no_claim_and_gets_a_new_key(site: Site) -> None:
    site.approve()
    site.claim()
    for _ in range(2):
        agent = site.agent()
        async with running(agent.run):
            await until(lambda agent=agent: agent.status().state == "valid", "the certificate")  # type: ignore[misc]
    assert site.files.read_claim() is None


async def test_a_device_that_lost_its_attestation_key_enrols_again_by_its_tpm_alone(site: Site) -> None:
    site.approve()
    site.claim()
    for _ in range(2):
        agent = site.agent()
        async with running(agent.run):
            await until(lambda agent=agent: agent.status().state == "valid", "the certificate")  # type: ignore[misc]
        site.keys.tpm.new_ak()
    assert "re-enrolled" in site.desk.kinds()
    # The control: another TPM with the same record is nobody.
    site.keys = TpmKeys()
    stranger = site.agent()
    async with running(stranger.run):
        await until(lambda: "other-tpm" in stranger.status().reason, "the refusal")


async def test_without_a_claim_it_waits_and_takes_one_that_comes_later(site: Site) -> None:
    site.approve()
    agent = site.agent()
    async with running(agent.run):
        await until(lambda: agent.status().state == "needs-claim", "the wait for a claim")
        assert "gateway identity enrol" in agent.status().reason
        site.claim()
        await becomes_valid(agent)


async def test_a_boot_state_that_nobody_approved_is_refused_until_it_is_approved(site: Site) -> None:
    site.claim()
    site.desk.approve("another", dict.fromkeys((4, 7, 11), b"\x11" * 32))
    agent = site.agent()
    async with running(agent.run):
        await until(lambda: agent.status().state == "refused", "the refusal")
        assert "wrong-pcr" in agent.status().reason
        assert "identity-refused" in site.told.notices
        with pytest.raises(IdentityError, match="no certificate"):
            agent.credentials.tls_context()
        site.approve()
        site.claim()  # a new code makes it try at once
        await becomes_valid(agent)
    assert "identity-restored" in site.told.notices


async def test_grants_come_with_the_certificate_and_only_this_device_can_open_them(site: Site) -> None:
    site.approve()
    site.claim()
    key = site.desk.keys.create("detector@1.0.0", "ab" * 32)
    agent = site.agent()
    async with running(agent.run):
        await becomes_valid(agent)
    (grant,) = site.told.grants
    assert SealedBox(site.keys.box).decrypt(grant.wrapped_key) == key.key


async def test_a_bridge_with_another_authority_is_not_believed(site: Site, tmp_path: Path) -> None:
    impostor = tmp_path / "impostor"
    impostor.mkdir(mode=0o700)
    port = free_port()
    site.claim()
    async with listening(Desk(impostor, clock=Clock(time.time_ns())), port):
        site.url = f"https://127.0.0.1:{port}"
        agent = site.agent()
        async with running(agent.run):
            await until(lambda: agent.status().state == "failed", "the refusal to believe it")
        assert "somebody stands between" in agent.status().reason
        assert site.files.read_claim() is not None  # the token was never shown


async def test_a_bridge_that_is_known_must_show_a_certificate_of_its_authority(site: Site, tmp_path: Path) -> None:
    site.approve()
    site.claim()
    known = site.agent()
    async with running(known.run):
        await becomes_valid(known)
    bundle = site.files.read().bundle
    impostor = tmp_path / "impostor"
    impostor.mkdir(mode=0o700)
    port = free_port()
    async with listening(Desk(impostor, clock=Clock(time.time_ns())), port):
        server = IdentityServer(f"https://127.0.0.1:{port}", known.clock)
        with pytest.raises(IdentityUntrustedError):
            await server.challenge(bundle, ChallengeRequest(gateway=GATEWAY))


async def test_control_without_these_looks_an_impostor_is_shown_the_claim_and_asked_for_certificates(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = tmp_path / "impostor"
    impostor.mkdir(mode=0o700)
    port = free_port()
    expected = site.desk.ca.services_fingerprint
    server = IdentityServer(f"https://127.0.0.1:{port}", TrustedClock())
    keys = site.keys.enrolment_keys()
    request = EnrolRequest(
        gateway=GATEWAY, level="tpm", ak_public=keys.ak_public, ek_public=keys.ek_public, claim_token="a secret"
    )
    async with listening(Desk(impostor, clock=Clock(time.time_ns())), port):
        monkeypatch.setattr("gateway.identity.server.fingerprint_of", lambda _: expected)
        believed = await server.trust(expected)
        with pytest.raises(IdentityRefusedError):  # an answer of the impostor: it has read the claim
            await server.enrol(believed.bundle, request)
        genuine = site.desk.ca.services_pem.decode()
        with pytest.raises(IdentityUntrustedError):
            await server.challenge(genuine, ChallengeRequest(gateway=GATEWAY))
        monkeypatch.setattr("gateway.identity.server.client_context", lambda *_: blind_context())
        with pytest.raises(IdentityRefusedError):
            await server.challenge(genuine, ChallengeRequest(gateway=GATEWAY))


@pytest.mark.parametrize("years", [-50, 10])
async def test_a_device_whose_clock_is_wrong_enrols_and_learns_the_time(site: Site, years: int) -> None:
    site.approve()
    site.claim()
    off_ns = int(years * 365 * DAY) * SECOND
    clock = TrustedClock(wall_ns=lambda: time.time_ns() + off_ns)
    agent = site.agent(clock=clock)
    async with running(agent.run):
        await becomes_valid(agent)
    assert abs(clock.now_ns() - time.time_ns()) < 60 * SECOND
    assert clock.doubtful
    assert "clock-wrong" in site.told.notices
    assert (
        agent.credentials.tls_context().sslsocket_class is not ssl.SSLSocket
    )  # dates are checked by the trusted clock


async def test_a_certificate_that_was_over_before_the_floor_is_refused(site: Site) -> None:
    site.approve()
    site.claim()
    port = free_port()
    async with listening(site.desk, port, life_days=(-20.0, -10.0)):
        site.url = f"https://127.0.0.1:{port}"
        agent = site.agent(clock=TrustedClock(time.time_ns()))
        async with running(agent.run):
            await until(lambda: agent.status().state == "failed", "the refusal")
        assert "over for longer" in agent.status().reason


async def test_without_the_floor_that_certificate_would_be_believed(site: Site) -> None:
    """The control of the test before."""
    site.approve()
    site.claim()
    port = free_port()
    async with listening(site.desk, port, life_days=(-20.0, -10.0)):
        site.url = f"https://127.0.0.1:{port}"
        agent = site.agent(clock=TrustedClock(0, wall_ns=time.time_ns))
        async with running(agent.run):
            await becomes_valid(agent)


async def test_it_renews_at_half_life(site: Site) -> None:
    site.approve()
    site.claim()
    jumped = 0

    def monotonic_ns() -> int:
        return time.monotonic_ns() + jumped

    agent = site.agent(monotonic_ns=monotonic_ns)
    async with running(agent.run):
        await until(lambda: agent.status().renewals == 1, "the first certificate")
        first = agent.credentials.not_after_ns
        site.desk.clock.pass_seconds(1900)
        jumped = 1900 * SECOND  # as if half an hour had passed, perhaps asleep
        await until(lambda: agent.status().renewals == 2, "the renewal")
    assert agent.credentials.not_after_ns > first


@pytest.mark.parametrize("wrong", ["of another bridge", "no code at all"])
async def test_a_wrong_code_is_left_aside_and_an_enrolled_device_renews_with_the_bridge_it_believes(
    site: Site, wrong: str
) -> None:
    async with enrolled(site) as agent:
        code = ClaimCode(token=site.desk.token(GATEWAY, replace=True), fingerprint="0" * 64).text()
        site.files.leave_claim(code if wrong == "of another bridge" else "mistyped")
        await until(lambda: agent.status().renewals == 2, "the renewal")
        status = agent.status()
        assert status.state == "valid"
        assert "the claim code was left aside" in status.notice
        assert ("somebody stands between" if wrong == "of another bridge" else "copy it whole") in status.notice
        assert site.files.read_claim() is not None  # it may be meant for another configuration
        agent.renew_now()
        await until(lambda: agent.status().renewals == 3, "the next renewal")
        # It is not tried without end, and a right one is taken.
        await asyncio.sleep(0.3)
        assert agent.status().renewals == 3
        site.claim(replace=True)
        await until(lambda: site.files.read_claim() is None, "the right code is taken")
        await until(lambda: "left aside" not in agent.status().notice, "the word about the wrong one goes")


async def test_control_a_device_that_believes_nobody_yet_is_kept_out_by_a_wrong_code(site: Site) -> None:
    site.approve()
    site.files.leave_claim(ClaimCode(token=site.desk.token(GATEWAY), fingerprint="0" * 64).text())
    agent = site.agent()
    async with running(agent.run):
        await until(lambda: agent.status().state == "failed", "the refusal")
    assert "somebody stands between" in agent.status().reason


@pytest.mark.parametrize("days", [1.0, 10.0])
async def test_a_bridge_whose_clock_was_ahead_once_is_told_about_and_its_certificates_are_used(
    site: Site, days: float
) -> None:
    async with enrolled(site):
        pass
    ahead = time.time_ns() + int(days * DAY) * SECOND
    site.files.write(msgspec.structs.replace(site.files.read(), floor_ns=ahead))
    agent = site.agent()
    async with running(agent.run):
        await becomes_valid(agent)
        assert agent.credentials.valid
        assert 3000 < (agent.status().expires_in_seconds or 0) <= 3700
        agent.credentials.tls_context()
        agent.renew_now()
        await until(lambda: agent.status().renewals == 2, "the renewal")
    assert site.told.notices.count("bridge-clock-behind") == 1
    assert agent.clock.floor_ns == ahead  # an earlier time is not believed for that
    # The control: by the later time alone the certificate of the bridge is over before it is there.
    assert time.time_ns() + 3600 * SECOND < agent.clock.now_ns()


async def test_the_same_code_left_again_is_tried_again(site: Site) -> None:
    site.approve()
    site.claim()
    code = site.files.read_claim()
    assert code is not None
    agent = site.agent()
    async with running(agent.run):
        await becomes_valid(agent)
        site.files.leave_claim(code)
        await until(lambda: agent.status().renewals == 2 or agent.status().state == "refused", "another try")


async def test_a_bridge_that_is_away_is_tried_again_until_it_is_back(site: Site) -> None:
    site.approve()
    site.claim()
    port = free_port()
    site.url = f"https://127.0.0.1:{port}"
    agent = site.agent()
    async with running(agent.run):
        await until(lambda: agent.status().state == "unreachable", "the first failure")
        async with listening(site.desk, port):
            await becomes_valid(agent)
    assert not site.told.notices  # a network that is away is no news for the cloud


async def test_a_revoked_device_is_told_and_its_certificate_is_not_renewed(site: Site) -> None:
    async with enrolled(site) as agent:
        site.desk.revoke(GATEWAY)
        agent.renew_now()
        await until(lambda: agent.status().state == "refused", "the refusal")
    assert "revoked-device" in agent.status().reason


async def test_after_damage_to_its_record_a_known_tpm_needs_no_new_claim(site: Site) -> None:
    async with enrolled(site):
        pass
    (site.state / "identity" / "identity.json").write_bytes(b"\0" * 100)
    site.knobs = {"fingerprint": site.desk.ca.services_fingerprint}  # or the code again, to know whom to believe
    again = site.agent()
    async with running(again.run):
        await until(lambda: again.status().state == "valid", "the certificate after the damage")


async def test_a_record_that_cannot_be_read_at_the_start_is_read_later_and_needs_no_new_claim(site: Site) -> None:
    class Held(IdentityFiles):
        """As when no file can be opened, or all of it belongs to root."""

        held = True

        def read(self) -> IdentityRecord:
            if self.held:
                raise IdentityError("identity.json cannot be read now: Too many open files")
            return super().read()

    async with enrolled(site):
        pass
    floor_ns = site.files.read().floor_ns
    files, told = Held(site.state), Told()
    agent = IdentityAgent(Identity(url=site.url), GATEWAY, files, site.keys, told.outcomes(), draw=lambda: 0.0)
    async with running(agent.run):
        await until(lambda: agent.status().state == "failed", "what is wrong")
        assert "Too many open files" in agent.status().reason
        files.held = False
        agent.renew_now()
        await until(lambda: agent.status().state == "valid", "the certificate, with the record of before")
    assert agent.clock.floor_ns >= floor_ns > 0


def test_the_key_in_the_certificate_request_is_new_each_time() -> None:
    requests = {x509.load_der_x509_csr(fresh_key(GATEWAY, "")[1]).public_key().public_numbers() for _ in range(3)}  # type: ignore[union-attr]
    assert len(requests) == 3


async def test_what_somebody_in_between_adds_to_the_authority_is_not_believed(site: Site, tmp_path: Path) -> None:
    """The fingerprint vouches for the first certificate of the bundle alone."""
    between = tmp_path / "between"
    between.mkdir(mode=0o700)
    impostor = Desk(between, clock=Clock(time.time_ns()))
    both = site.desk.ca.services_pem.decode() + impostor.ca.services_pem.decode()
    impostor.service._anchors = Anchors(both, site.desk.ca.services_fingerprint)
    site.claim()
    port = free_port()
    async with listening(impostor, port):
        site.url = f"https://127.0.0.1:{port}"
        agent = site.agent()
        async with running(agent.run):
            await until(lambda: agent.status().state not in ("starting", "valid"), "the refusal to believe it")
        assert agent.status().state == "failed"
        assert "not the bridge that this device believes" in agent.status().reason


async def test_a_code_that_comes_while_another_is_tried_is_taken_at_once(site: Site) -> None:
    @dataclass
    class Meanwhile(TpmKeys):
        """The person brings the right code and approval while the first attestation is under way."""

        rounds: int = 0

        def prove(self, challenge: Challenge, csr: bytes, recipient: bytes, gateway: str) -> Proof:
            proof = super().prove(challenge, csr, recipient, gateway)
            if not self.rounds:
                site.claim()
            self.rounds += 1
            return proof

    site.keys = Meanwhile()
    site.claim()
    agent = site.agent()
    async with running(agent.run):
        await until(lambda: agent.status().state == "refused", "the refusal")
        site.approve()
        await until(lambda: agent.status().state == "valid", "the certificate", seconds=10.0)


async def test_a_new_code_makes_a_device_believe_a_bridge_that_was_rebuilt(site: Site, tmp_path: Path) -> None:
    site.approve()
    site.claim()
    port = free_port()
    site.url = f"https://127.0.0.1:{port}"
    async with listening(site.desk, port):
        agent = site.agent()
        async with running(agent.run):
            await until(lambda: agent.status().state == "valid", "the first certificate")
    rebuilt = tmp_path / "rebuilt"
    rebuilt.mkdir(mode=0o700)
    site.desk = Desk(rebuilt, clock=Clock(time.time_ns()))
    site.approve()
    async with listening(site.desk, port):
        again = site.agent()
        async with running(again.run):
            await until(lambda: again.status().state == "failed", "the refusal to believe another authority")
            site.claim()
            await until(lambda: again.status().state == "valid", "the certificate of the new bridge")


async def test_a_floor_that_a_bridge_of_the_future_has_left_goes_with_a_new_code(site: Site) -> None:
    async with enrolled(site):
        pass
    ahead = time.time_ns() + int(10 * 365 * DAY) * SECOND
    site.files.write(msgspec.structs.replace(site.files.read(), floor_ns=ahead))
    agent = site.agent()
    async with running(agent.run):
        await until(lambda: agent.status().state == "failed", "the refusal")
        assert "claim code" in agent.status().reason
        site.claim(replace=True)
        await becomes_valid(agent)
    assert site.files.read().floor_ns < ahead
    assert abs(agent.clock.now_ns() - time.time_ns()) < 60 * SECOND
