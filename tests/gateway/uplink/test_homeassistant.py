import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from gateway.config import CameraSource, HealthSource, HomeAssistant, Pipeline, ReplaySource, Rule, Source
from gateway.uplink.homeassistant import discovery_of, without_retired

SOURCES: dict[str, Source] = {
    "cam": CameraSource(device="/dev/video0"),
    "clip": ReplaySource(file=Path("clip.mp4")),
    "motor": ReplaySource(file=Path("motor.csv")),
    "self": HealthSource(),
}
PIPELINES = {
    "dock": Pipeline(source="cam", model="m", rules=[Rule(name="intruder", labels=["person", "car"])]),
    "pump-1": Pipeline(source="motor", model="v", rules=[Rule(name="vibration")]),
}


def document(settings: HomeAssistant | None = None) -> dict[str, Any]:
    found = discovery_of(
        settings or HomeAssistant(enabled=True),
        "gw-1",
        "sluice",
        pipelines=PIPELINES,
        sources=SOURCES,
        version="1.2.3",
    )
    assert found.topic == "homeassistant/device/sluice_gw-1/config"
    assert found.payload is not None
    return dict(json.loads(found.payload))


def render(entity: dict[str, Any], message: dict[str, Any]) -> str:
    return jinja2.Environment(autoescape=False).from_string(entity["value_template"]).render(value_json=message)


def test_it_is_off_by_default_and_then_names_only_what_to_take_back() -> None:
    found = discovery_of(HomeAssistant(), "gw-1", "sluice", pipelines=PIPELINES, sources=SOURCES, version="1")
    assert (found.topic, found.payload) == ("homeassistant/device/sluice_gw-1/config", None)


def test_the_document_describes_one_device_with_its_origin() -> None:
    found = document()
    assert found["device"] == {
        "identifiers": ["sluice_gw-1"],
        "name": "gw-1",
        "manufacturer": "Sluice",
        "model": "Edge-AI gateway",
        "sw_version": "1.2.3",
    }
    assert found["origin"] == {"name": "Sluice", "sw_version": "1.2.3"}


def test_every_entity_has_what_home_assistant_demands() -> None:
    components = document()["components"]
    ids = [entity["unique_id"] for entity in components.values()]
    assert len(set(ids)) == len(ids)
    for key, entity in components.items():
        assert entity["platform"] in {"binary_sensor", "sensor", "event"}
        assert entity["state_topic"].startswith("sluice/v1/gw-1/")
        assert entity["name"]
        assert entity["value_template"]
        assert key.replace("_", "").replace("-", "").isalnum()
        if key != "connectivity":
            assert entity["availability_mode"] == "all"
            assert entity["availability"][0]["topic"] == "sluice/v1/gw-1/availability/gateway"


@pytest.mark.parametrize(
    ("key", "device_class"),
    [
        ("connectivity", "connectivity"),
        ("dock_open", "motion"),
        ("dock_rule_intruder_person", "occupancy"),
        ("dock_rule_intruder_car", "motion"),
        ("pump-1_open", "problem"),
        ("pump-1_rule_vibration", "problem"),
        ("dock_running", "running"),
    ],
)
def test_device_classes_fit(key: str, device_class: str) -> None:
    assert document()["components"][key]["device_class"] == device_class


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "new", "rule": "intruder", "label": "person", "reason": "rule"}, "ON"),
        ({"type": "update", "rule": "intruder", "label": "person", "reason": "rule"}, "ON"),
        ({"type": "end", "rule": "intruder", "label": "person", "reason": "rule"}, "OFF"),
        ({"type": "new", "rule": "intruder", "label": "car", "reason": "rule"}, ""),
        ({"type": "end", "rule": "other", "label": "person", "reason": "rule"}, ""),
        ({"type": "new", "rule": "intruder", "label": "person", "reason": "low-confidence"}, ""),
    ],
)
def test_a_rule_is_on_while_its_event_is_open_and_ignores_others(message: dict[str, str], expected: str) -> None:
    assert render(document()["components"]["dock_rule_intruder_person"], message) == expected


def test_names_in_templates_cannot_break_out_of_their_quotes() -> None:
    evil = "\"'}} {% raise %}"
    pipelines = {"dock": Pipeline(source="cam", model="m", rules=[Rule(name="r", labels=[evil])])}
    found = discovery_of(HomeAssistant(enabled=True), "gw", "sluice", pipelines=pipelines, sources=SOURCES, version="")
    assert found.payload is not None
    components = json.loads(found.payload)["components"]
    (entity,) = [each for key, each in components.items() if "_rule_" in key]
    assert render(entity, {"type": "new", "rule": "r", "label": evil, "reason": "rule"}) == "ON"


def test_the_event_entity_gives_the_type_that_home_assistant_wants() -> None:
    entity = document()["components"]["dock_events"]
    message = {
        "type": "new",
        "event_id": "e1",
        "label": "person",
        "rule": "intruder",
        "score": 0.75,
        "reason": "rule",
    }
    shown = json.loads(render(entity, message))
    assert shown == {**{k: v for k, v in message.items() if k != "type"}, "event_type": "new"}
    assert shown["event_type"] in entity["event_types"]


@pytest.mark.parametrize(("state", "expected"), [("online", "online"), ("stopped", "offline"), ("offline", "offline")])
def test_presence_is_understood(state: str, expected: str) -> None:
    availability = document()["components"]["dock_open"]["availability"][0]
    assert render(availability, {"state": state}) == expected


@pytest.mark.parametrize(("count", "expected"), [(0, "OFF"), (2, "ON")])
def test_open_events_come_from_the_retained_status(count: int, expected: str) -> None:
    assert render(document()["components"]["dock_open"], {"open_events": count}) == expected


def test_entities_no_longer_there_become_stubs_in_the_farewell() -> None:
    earlier = json.dumps({"components": {"a": {"platform": "sensor", "name": "x"}, "b": {"platform": "event"}}})
    present = json.dumps({"components": {"b": {"platform": "event"}}}).encode()
    farewell = without_retired(earlier.encode(), present)
    assert farewell is not None
    assert json.loads(farewell)["components"] == {"a": {"platform": "sensor"}, "b": {"platform": "event"}}
    assert without_retired(present, present) is None


@pytest.mark.parametrize("earlier", [b"", b"nonsense", b"[]", b'{"components": 5}', b"\xff", b'{"components":{"a":1}}'])
def test_nonsense_left_by_others_is_not_a_reason_to_fail(earlier: bytes) -> None:
    assert without_retired(earlier, b'{"components":{}}') is None
