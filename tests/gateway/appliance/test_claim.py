"""Claim files are read strictly, and every mistake is told with its line and remedy."""

import base64
import hashlib
import textwrap
from typing import Any

import pytest

from gateway.appliance.claim import InvalidClaimError, read_claim
from gateway.wire.claimfile import MAX_CLAIM_BYTES, CarriedClaim, from_qr, to_qr
from gateway.wire.errors import MalformedMessageError
from gateway.wire.identity import claim_code
from tests.gateway.appliance.claims import CODE, FINGERPRINT, SSH_KEY, claim, text, whole_claim


def mistakes(content: bytes) -> str:
    with pytest.raises(InvalidClaimError) as caught:
        read_claim(content, "sluice-claim.yaml")
    return str(caught.value)


def test_a_whole_claim_is_read_as_it_was_written() -> None:
    read = read_claim(text(**whole_claim()), "sluice-claim.yaml")
    assert read.gateway == "dock-7"
    assert read.code == CODE
    assert read.network[0].address == "192.0.2.7/24"
    assert read.secrets == {"dock-camera": "s3cret-of-camera"}


def test_every_mistake_is_told_with_line_and_remedy() -> None:
    content = textwrap.dedent(f"""\
        version: 1
        gateway: Dock 7
        identity: bridge.example
        code: {CODE}
        brokers: [mqtt://broker.example]
        colour: red
        ssh: ["not a key"]
        config:
          pipelines:
            door: {{source: dock}}
        """)
    told = mistakes(content.encode())
    assert "sluice-claim.yaml:2:10: error: gateway: expected lower-case letters" in told
    assert "sluice-claim.yaml:6:1: error: colour: unknown key `colour`" in told
    assert "config.pipelines.door: `model` is missing; add `model:`" in told


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"identity": "http://bridge.example"}, "identity: not an https:// address; write it as in https://"),
        ({"identity": "https://user@bridge.example"}, "identity: not an https:// address"),
        ({"brokers": ["mqtt://broker.example"]}, "brokers[0]: not an mqtts:// address"),
        ({"code": "sluice1.short"}, "code: this is no claim code; it begins with sluice1."),
        ({"code": None}, "nobody could be believed; `cloud-bridge identity token create"),
        ({"fingerprint": "00" * 32}, "fingerprint: it is of another authority than the code"),
        ({"ca": "no certificate"}, "ca: none of these certificates has the fingerprint"),
        ({"ssh": ['command="sh" ' + SSH_KEY]}, "ssh[0]: this is no public key; one line of a `.pub` file, without"),
        ({"ssh": [SSH_KEY + "\n" + SSH_KEY]}, "ssh[0]: this is no public key"),
        ({"time_zone": "Berlin"}, "time_zone: no such time zone; write it as in `Europe/Berlin`"),
        ({"time_zone": "../../etc/shadow"}, "time_zone: no such time zone"),
        ({"ntp": ["a\nServer=b"]}, "ntp[0]: this is no host name"),
        ({"network": [{"address": "192.0.2.7"}]}, "network[0]: '192.0.2.7' is no address with its network"),
        ({"network": [{"gateway": "192.0.2.1"}]}, "a gateway without an address"),
        ({"network": [{"interface": "en0\n[Route]"}]}, "network[0].interface"),
        ({"secrets": {"../gateway": "x"}}, "secrets"),
        ({"registry_root": "{"}, "registry_root: this is no root.json"),
        ({"config": {"cloud": {"brokers": [{"url": "mqtts://b"}]}}}, "brokers are given twice"),
        ({"config": {"vault": {"level": "software"}}}, "config.vault: unknown key `vault`"),
        ({"config": {"gateway": {"id": "other"}}}, "config.gateway: unknown key `gateway`"),
    ],
)
def test_what_types_cannot_say_is_checked_too(changed: dict[str, Any], told: str) -> None:
    assert told in mistakes(text(**changed))


def test_a_file_of_a_later_version_says_so_and_nothing_else() -> None:
    told = mistakes(text(version=2, colour="red"))
    assert told.count("\n") == 0
    assert "the file is of version 2, this image reads 1; update the image first" in told
    assert "write `version: 1`" in mistakes(b"gateway: dock-7\n")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"- a\n", b"a: [", b"x" * (MAX_CLAIM_BYTES + 1), b"!!python/object:os.system {}\n"]
)
def test_what_is_no_claim_is_refused_in_words(content: bytes) -> None:
    assert mistakes(content).startswith("sluice-claim.yaml:1:")


def test_a_certificate_counts_by_its_fingerprint() -> None:
    der = b"some certificate"
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(der).decode()}\n-----END CERTIFICATE-----\n"
    code = claim_code(CODE)
    assert code is not None
    own = f"sluice1.{code.token}.{hashlib.sha256(der).hexdigest()}"
    assert read_claim(text(code=own, ca=pem), "c").ca == pem


def test_a_claim_goes_through_a_qr_code_unchanged() -> None:
    for each in (
        claim(),
        claim(labels={"site": "berlin"}, ntp=["a.example"]),
        claim(code=None, fingerprint=FINGERPRINT),
    ):
        read = read_claim(text(**each), "c")
        carried = to_qr(read)
        assert from_qr(carried) == read
        assert carried.isascii()
        assert len(carried) < 240


def test_a_token_of_another_form_is_carried_as_it_is() -> None:
    read = read_claim(text(code=f"sluice1.Other-Token.{FINGERPRINT}"), "c")
    assert from_qr(to_qr(read)) == read


def test_a_claim_that_no_camera_could_read_is_refused_with_what_to_leave_out() -> None:
    read = CarriedClaim(
        version=1,
        gateway="a",
        identity="https://b",
        code=CODE,
        ssh=[f"ssh-rsa {hashlib.sha512(bytes([n])).hexdigest()}" for n in range(9)],
    )
    with pytest.raises(ValueError, match=r"leave out ssh, or carry it as a file"):
        to_qr(read)


@pytest.mark.parametrize("damage", ["SLUICE1:", "SLUICE1:ABC", "SLUICE2:ABC", "SLUICE1:" + "%" * 50, "SLUICE1:ab"])
def test_a_damaged_code_is_an_error_and_another_code_is_none(damage: str) -> None:
    with pytest.raises(MalformedMessageError):
        from_qr(damage)
    assert from_qr("https://example.com") is None


def test_any_flipped_character_of_a_code_is_refused_or_means_the_same() -> None:
    good = to_qr(read_claim(text(), "c"))
    for at in range(8, len(good)):
        try:
            read = from_qr(good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :])
        except MalformedMessageError:
            continue
        assert read is not None  # the picture's own error correction is what keeps such a change out
