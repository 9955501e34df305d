from cloud_bridge.console.pictures import Pictures, picture_type
from gateway.wire.messages import EvidenceLink
from tests.simulators.bridge_data import TINY_JPEG, BridgeData, an_event

LINK = EvidenceLink(evidence_id="pic", content_type="image/jpeg", size_bytes=20)


def test_a_picture_is_known_by_its_bytes() -> None:
    assert picture_type(TINY_JPEG) == "image/jpeg"
    assert picture_type(b"\x89PNG\r\n\x1a\n...") == "image/png"
    assert picture_type(b"<svg onload=alert(1)>") is None
    assert picture_type(b"") is None


def test_a_picture_shows_once_it_has_come_and_is_then_not_asked_for_again() -> None:
    data = BridgeData()
    data.put_event(an_event("e", evidence=LINK))
    pictures, events = Pictures(data), data.events()
    assert pictures.among(events) == frozenset()
    data.put_evidence("plant-a", "pic", TINY_JPEG)
    assert pictures.among(events) == {("plant-a", "pic")}
    calls = data.calls
    assert pictures.among(events) == {("plant-a", "pic")}
    assert data.calls == calls


def test_what_only_claims_to_be_a_picture_is_none() -> None:
    data = BridgeData()
    data.put_event(an_event("e", evidence=LINK))
    data.put_evidence("plant-a", "pic", b"<html>", "image/jpeg")
    assert Pictures(data).among(data.events()) == frozenset()


def test_evidence_of_another_gateway_is_not_taken() -> None:
    data = BridgeData()
    data.put_event(an_event("e", evidence=LINK))
    data.put_evidence("yard-b", "pic", TINY_JPEG)
    assert Pictures(data).among(data.events()) == frozenset()
