"""A device takes the one claim that is for it, and says why not the others."""

import msgspec
import pytest

from gateway.appliance.claim import read_claim
from gateway.appliance.offers import Offer, choose
from gateway.wire.claimfile import to_qr
from tests.gateway.appliance.claims import CODE, text

HERE = ("SN-0042", "52:54:00:12:34:56")


def offer(content: bytes | str, origin: str = "stick") -> Offer:
    return Offer(origin, content, lambda: "")


def test_the_only_claim_is_taken() -> None:
    choice = choose([offer(text())], HERE)
    assert choice.claim is not None
    assert choice.claim.gateway == "dock-7"


def test_a_claim_for_another_device_is_passed_over_with_what_this_one_is() -> None:
    choice = choose([offer(text(only_for=["SN-0001"]))], HERE)
    assert choice.taken is None
    assert "it is for another device (SN-0001); here: 52:54:00:12:34:56, sn-0042" in choice.refused[0]


def test_one_stick_serves_a_fleet_when_its_claims_name_their_devices() -> None:
    offers = [
        offer(text(gateway="dock-6", only_for=["SN-0041"]), "a"),
        offer(text(gateway="dock-7", only_for=["sn-0042"]), "b"),
        offer(text(gateway="spare"), "c"),
    ]
    choice = choose(offers, HERE)
    assert choice.claim is not None
    assert choice.claim.gateway == "dock-7"


def test_of_two_claims_that_fit_none_is_taken() -> None:
    choice = choose([offer(text(), "a"), offer(text(gateway="dock-8"), "b")], HERE)
    assert choice.taken is None
    assert (
        "several claims fit this device: a for dock-7; b for dock-8; leave one, or add `only_for`" in choice.refused[0]
    )


def test_the_same_claim_on_a_stick_and_before_a_camera_is_one() -> None:
    picture = to_qr(read_claim(text(), "c"))
    choice = choose([offer(text(), "stick"), offer(picture, "camera")], HERE)
    assert choice.taken is not None
    assert choice.taken.origin == "stick"


@pytest.mark.parametrize("content", ["https://example.com", "SLUICE9:1", b"gateway: dock-7"])
def test_what_is_no_claim_is_told_and_does_not_hide_the_good_one(content: bytes | str) -> None:
    choice = choose([offer(content, "bad"), offer(text(), "good")], HERE)
    assert choice.taken is not None
    assert choice.taken.origin == "good"
    assert "bad" in choice.refused[0]


def test_a_picture_is_checked_as_strictly_as_a_file() -> None:
    wrong = msgspec.structs.replace(read_claim(text(), "c"), brokers=["mqtt://broker.example"])
    choice = choose([offer(to_qr(wrong), "camera")], HERE)
    assert choice.taken is None
    assert "not an mqtts:// address" in choice.refused[0]
    assert CODE not in choice.refused[0]
