"""Stand-ins for the command lines of step-ca, Vault and SPIRE.

They take the words that are documented for those, answer in the documented form, and have an `OrganisationCa` sign.
They show that a recipe fits these forms, not that it fits the programs.

As a program: DIRECTORY NAME WORDS... with the directory of the OrganisationCa.
"""

import base64
import itertools
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.simulators.organisation_ca import SCRIPTS

NAMES: Final = ("step", "vault", "grpcurl")


def install(place: Path, home: Path) -> None:
    """Put the stand-ins into a directory for PATH."""
    place.mkdir()
    for name in NAMES:
        file = place / name
        file.write_text(f'#!/bin/sh\nexec {sys.executable} -m {__name__} {home} {name} "$@"\n')
        file.chmod(0o755)


def signed(home: Path, csr: bytes, common_name: str, uri: str, seconds: int) -> list[x509.Certificate]:
    """Have the organisation sign; the names are those that the program was told."""
    now = datetime.now(UTC)
    asked = {
        "csr": csr.decode("ascii"),
        "common_name": common_name,
        "spiffe_id": uri,
        "not_before": f"{now - timedelta(seconds=30):%FT%TZ}",
        "not_after": f"{now + timedelta(seconds=seconds):%FT%TZ}",
    }
    command = [SCRIPTS / "openssl-ca.sh", home]
    done = subprocess.run(command, input=json.dumps(asked).encode(), check=True, stdout=subprocess.PIPE)
    return x509.load_pem_x509_certificates(done.stdout)


def names_of(csr: x509.CertificateSigningRequest) -> tuple[str, str]:
    """Return what a request asks for, as step-ca and SPIRE take it: the CN and the one URI."""
    (common,) = csr.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    (uri,) = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(common.value), str(uri.value)


def step(home: Path, words: list[str]) -> None:
    """`step ca token` writes a token that binds names; `step ca sign` compares them with the request's, one to one."""
    options = dict(itertools.pairwise(words))
    if words[:2] == ["ca", "token"]:
        assert options["--provisioner"]
        assert Path(options["--provisioner-password-file"]).exists()
        print(json.dumps([words[2], options["--san"]]))
        return
    assert words[:2] == ["ca", "sign"]
    request, out = map(Path, words[-2:])
    csr = x509.load_pem_x509_csr(request.read_bytes())
    assert list(names_of(csr)) == json.loads(options["--token"]), "the names are not those of the token"
    seconds = int(options["--not-after"].removesuffix("s"))
    out.write_bytes(pem(signed(home, request.read_bytes(), *names_of(csr), seconds)))


def vault(home: Path, words: list[str]) -> None:
    """`vault write -format=json MOUNT/sign/ROLE`: JSON with the certificate and what is above it apart."""
    assert words[:2] == ["write", "-format=json"]
    assert re.fullmatch(r"[^/]+/sign/[^/]+", words[2])
    given = dict(word.split("=", 1) for word in words[3:])
    assert given["exclude_cn_from_sans"] == "true"
    csr = Path(given["csr"].removeprefix("@")).read_bytes()
    chain = signed(home, csr, given["common_name"], given["uri_sans"], int(given["ttl"].removesuffix("s")))
    leaf, *above = [pem([one]).decode().strip() for one in chain]
    print(json.dumps({"data": {"certificate": leaf, "issuing_ca": above[0], "ca_chain": above}}))


def grpcurl(home: Path, words: list[str]) -> None:
    """`SVID.MintX509SVID` of SPIRE in protobuf's JSON: DER in base64 both ways, names from the request."""
    assert words[:4] == ["-plaintext", "-unix", "-d", "@"]
    assert words[5] == "spire.api.server.svid.v1.SVID/MintX509SVID"
    asked = json.load(sys.stdin)
    csr = x509.load_der_x509_csr(base64.b64decode(asked["csr"], validate=True))
    as_pem = csr.public_bytes(serialization.Encoding.PEM)
    chain = signed(home, as_pem, *names_of(csr), asked["ttl"])
    der = [base64.b64encode(one.public_bytes(serialization.Encoding.DER)).decode() for one in chain]
    print(json.dumps({"svid": {"certChain": der}}))


def pem(chain: list[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)


if __name__ == "__main__":
    {"step": step, "vault": vault, "grpcurl": grpcurl}[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])
