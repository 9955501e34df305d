"""The scripts of docs/issuers for other authorities, by the form of what is documented of those."""

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from cloud_bridge.identity.errors import AuthorityError
from cloud_bridge.identity.foreign import Certificates, ForeignIssuer
from cloud_bridge.identity.issuer import CertificateRequest, csr_key, life_from
from cloud_bridge.identity.signing_command import CommandSigner
from gateway.identity.tls import fresh_key
from tests.simulators import other_authorities
from tests.simulators.organisation_ca import SCRIPTS, OrganisationCa, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

ID = "spiffe://sluice.test/gateway/dock-7"
WORDS = {
    "step-ca.sh": ["sluice", "{here}/password"],
    "vault-pki.sh": ["pki_devices", "gateway"],
    "spire.sh": ["/run/spire/api.sock"],
}

Certify = Callable[[str, str, str], x509.Certificate]


@pytest.fixture
def certify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certify:
    """Have a recipe certify a request as a gateway makes it; given its script, the name and the domain it asks for."""
    organisation = OrganisationCa(tmp_path / "organisation")
    other_authorities.install(tmp_path / "bin", organisation.home)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parents[1]))
    (tmp_path / "password").write_text("secret\n")

    def work(script: str, asks_as: str, asks_in: str) -> x509.Certificate:
        words = [word.format(here=tmp_path) for word in WORDS[script]]
        signer = CommandSigner([str(SCRIPTS / script), *words], 25.0)
        issuer = ForeignIssuer(signer, Certificates(organisation.anchors, "trust_anchors"))
        _, csr = fresh_key(asks_as, asks_in)
        life = life_from(datetime.now(UTC), seconds=3600)
        issued = issuer.certify(CertificateRequest("dock-7", ID, csr, csr_key(csr), life))
        return x509.load_pem_x509_certificates(issued.chain_pem)[0]

    return work


@pytest.mark.parametrize("script", WORDS)
def test_a_recipe_fits_what_is_documented_of_its_authority(script: str, certify: Certify) -> None:
    assert certify(script, "dock-7", "sluice.test").subject.rfc4514_string() == "CN=dock-7"


def test_where_names_come_from_the_call_a_gateway_may_ask_without_any(certify: Certify) -> None:
    certify("vault-pki.sh", "gateway", "")


@pytest.mark.parametrize("script", ["step-ca.sh", "spire.sh"])
def test_where_names_come_from_the_request_a_gateway_that_names_itself_otherwise_gets_nothing(
    script: str, certify: Certify
) -> None:
    with pytest.raises(AuthorityError):
        certify(script, "gateway", "")


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda file: file.name)
def test_a_recipe_is_plain_shell_that_can_be_started(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", script], check=False, capture_output=True).stderr == b""
