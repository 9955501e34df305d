"""Attestations the bridge can judge on one core: verify quote and request, issue, wrap a key, keep it all on disk."""

import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nacl.public import PrivateKey
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config, Identity, Store
from cloud_bridge.identity.approvals import Approval, approve
from cloud_bridge.identity.attestation import attestation_key, verify_quote
from cloud_bridge.identity.claims import Claim, add_claim, id_of_token, new_token
from cloud_bridge.identity.component import open_identities
from cloud_bridge.identity.contentkeys import ContentKeys
from cloud_bridge.identity.issuer import LocalCa, csr_key, life_from, new_key
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.service import IdentityService
from cloud_bridge.identity.states import BootState
from gateway.wire.identity import (
    PATH_ATTEST,
    PATH_CHALLENGE,
    PATH_ENROL,
    AttestRequest,
    ChallengeRequest,
    EnrolRequest,
    binding,
)
from gateway.wire.messages import decode, encode
from tests.bench.figures import percentiles
from tests.bench.table import at_least, at_most
from tests.simulators.attested_device import AttestedDevice, Post, SoftTpm, csr_of

ROUNDS = 1000
RELEASES: Final = 50
RENEWALS_AIM: Final = 500
FLEET_PERCENT_AIM: Final = 5.0
_KEY = new_key()


def attestations(rounds: int = ROUNDS) -> dict[str, Any]:
    """Whole renewals a second, durable in SQLite, and their parts; the device's side is made beforehand."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with tempfile.TemporaryDirectory() as directory:
            return _measured(Path(directory), rounds)
    finally:
        os.sched_setaffinity(0, cores)


def _measured(directory: Path, rounds: int) -> dict[str, Any]:
    settings = Identity(trust_domain="bench", directory=directory / "id", challenge_seconds=3600)
    config = Config(store=Store(url=f"sqlite:///{directory}/bridge.db"), identity=settings)
    identities = open_identities(config, time.time_ns)
    service = IdentityService(
        settings,
        identities.database,
        IdentityMetrics(CollectorRegistry()),
        issuer=identities.ca,
        anchors=identities.anchors,
        keys=identities.keys,
    )

    def post(path: str, body: bytes) -> bytes:
        match path:
            case p if p == PATH_ENROL:
                return encode(service.enrol(decode(body, EnrolRequest)))
            case p if p == PATH_CHALLENGE:
                return encode(service.challenge(decode(body, ChallengeRequest)))
        assert path == PATH_ATTEST
        return encode(service.attest(decode(body, AttestRequest), "127.0.0.1"))

    tpm = SoftTpm()
    token, now_ns = new_token(), time.time_ns()
    with identities.database.transaction() as tx:
        approve(tx, Approval(BootState("bench", tpm.pcrs([4, 7, 11])), now_ns, "bench"))
        add_claim(tx, Claim(id_of_token(token), "dock-7", "token", False, now_ns, now_ns + 10**13, None))
    identities.keys.create("person/1", "ab" * 32)
    device = AttestedDevice("dock-7", post, tpm)
    device.enrol(token)
    whole, busy = (list(times) for times in zip(*(_renewal(device, post) for _ in range(rounds)), strict=True))
    remembered, anew = _of_many_releases(identities.keys, device, post, max(1, rounds // 10))
    per_second, share = round(rounds / sum(busy)), round(100 * 10_000 * 2 / 3600 * sum(busy) / rounds, 2)
    result = {
        "rows": [
            at_least(
                "renewals of an identity by a TPM quote, each with its certificate, for each second of one core",
                per_second,
                RENEWALS_AIM,
                measured=f"{per_second:,}",
            ),
            at_most(
                "what 10,000 gateways that renew every half hour cost the bridge",
                share,
                FLEET_PERCENT_AIM,
                unit="% of a core",
            ),
            at_least(
                f"the same renewals with the keys of {RELEASES} releases, for each second of one core",
                remembered,
                RENEWALS_AIM,
                measured=f"{remembered:,}; {anew:,} where the bridge seals all of them anew, as after its start",
            ),
        ],
        "unit": "attestations/s on one core",
        "renewals_per_second": round(rounds / sum(whole)),
        "renewals_per_cpu_second": per_second,
        "renewal_ms": percentiles([1000 * one for one in whole]),
        "quote_verifications_per_second": _quotes(tpm, rounds),
        "certificates_per_second": _certificates(identities.ca, rounds),
        "core_for_10000_gateways_percent": share,
    }
    identities.database.close()
    return result


def _of_many_releases(keys: ContentKeys, device: AttestedDevice, post: Post, rounds: int) -> tuple[int, int]:
    """Return the renewals for each second of a core with many releases: boxes remembered, and all made anew."""
    for number in range(2, RELEASES + 1):
        keys.create(f"person/{number}", "ab" * 32)
    _renewal(device, post)
    remembered = [_renewal(device, post)[1] for _ in range(rounds)]
    anew = []
    for _ in range(rounds):
        device.recipient = PrivateKey.generate()  # a recipient that the bridge has never seen
        anew.append(_renewal(device, post)[1])
    return round(rounds / sum(remembered)), round(rounds / sum(anew))


def _renewal(device: AttestedDevice, post: Post) -> tuple[float, float]:
    """Measure the bridge's share of one renewal, the challenge and the judgement: seconds passed, and of a core."""
    started, started_cpu = time.perf_counter(), time.process_time()
    challenge = device.open_challenge()
    asked, asked_cpu = time.perf_counter(), time.process_time()
    body = encode(device.proof(challenge))
    proven, proven_cpu = time.perf_counter(), time.process_time()
    post(PATH_ATTEST, body)
    passed = time.perf_counter() - proven + asked - started
    return passed, time.process_time() - proven_cpu + asked_cpu - started_cpu


def _quotes(tpm: SoftTpm, rounds: int) -> int:
    csr = csr_of(_KEY)
    expected = binding(bytes(32), csr, bytes(32), "dock-7")
    quote, signature = tpm.quote(expected, [4, 7, 11])
    values, asked = tpm.pcrs([4, 7, 11]), frozenset({4, 7, 11})
    started = time.perf_counter()
    for _ in range(rounds):
        key = attestation_key(tpm.ak_public)
        verify_quote(key, quote, signature, expected=expected, pcrs=asked, values=values)
        csr_key(csr)
    return round(rounds / (time.perf_counter() - started))


def _certificates(ca: LocalCa, rounds: int) -> int:
    life = life_from(datetime.now(UTC), seconds=3600)
    key = _KEY.public_key()
    started = time.perf_counter()
    for _ in range(rounds):
        ca.device("dock-7", key, life)
    return round(rounds / (time.perf_counter() - started))
