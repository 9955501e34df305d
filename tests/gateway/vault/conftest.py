"""A TPM in software, a policy key, and a vault on both."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key

from tests.gateway.vault.device import Device
from tests.simulators import swtpm


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[swtpm.Swtpm]:
    if reason := swtpm.missing():
        pytest.skip(reason)
    with swtpm.Swtpm(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def policy_private() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


@pytest.fixture
def device(tmp_path: Path, tpm: swtpm.Swtpm, policy_private: EllipticCurvePrivateKey) -> Device:
    return Device(tmp_path, tpm.tcti, policy_private)
