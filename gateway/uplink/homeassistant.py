"""Home Assistant MQTT discovery. Pure: the configuration comes in, one retained document goes out.

One document describes the gateway as a device with all its entities (device discovery, Home Assistant 2024.11 and
later: `<prefix>/device/<object id>/config`). The entities read our own topics; nothing is published for them alone.
Format: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.config import CameraSource, HomeAssistant, Pipeline, ReplaySource, Rule, Source
from gateway.uplink.presence import AVAILABILITY_NAME
from gateway.wire.topics import Address, Channel, topic_for

Entity = dict[str, object]

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_PEOPLE: Final = frozenset({"person", "people", "face", "human"})
_VIDEO: Final = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".ts"})

_ONLINE: Final = "{{ 'online' if value_json.state == 'online' else 'offline' }}"
_RUNNING: Final = "{{ 'online' if value_json.state in ['running', 'degraded'] else 'offline' }}"


@dataclass(frozen=True, slots=True)
class Discovery:
    """What Home Assistant is told; without a payload, what it was told earlier is taken back."""

    topic: str
    payload: bytes | None
    birth_topic: str


def discovery_of(
    settings: HomeAssistant,
    gateway_id: str,
    root: str,
    *,
    pipelines: Mapping[str, Pipeline],
    sources: Mapping[str, Source],
    version: str,
) -> Discovery:
    """Describe a gateway with its pipelines to Home Assistant."""
    device = _safe(f"{root}_{gateway_id}")
    topic = f"{settings.discovery_prefix}/device/{device}/config"
    if not settings.enabled:
        return Discovery(topic, None, settings.birth_topic)
    document = {
        "device": {
            "identifiers": [device],
            "name": gateway_id,
            "manufacturer": "Sluice",
            "model": "Edge-AI gateway",
            "sw_version": version,
        },
        "origin": {"name": "Sluice", "sw_version": version},
        "components": _components(_Namer(device, gateway_id, root), pipelines, sources),
        "qos": 1,
    }
    return Discovery(topic, json.dumps(document, separators=(",", ":")).encode(), settings.birth_topic)


def without_retired(earlier: bytes, present: bytes) -> bytes | None:
    """Return the present document with stubs for entities that only the earlier one had; None if there are none.

    Home Assistant removes an entity when its component is given with nothing but its platform.
    """
    try:
        old = json.loads(earlier)
    except (ValueError, RecursionError):
        return None
    components = old.get("components") if isinstance(old, dict) else None
    if not isinstance(components, dict):
        return None
    document = json.loads(present)
    retired = {
        key: {"platform": entity["platform"]}
        for key, entity in components.items()
        if key not in document["components"] and isinstance(entity, dict) and "platform" in entity
    }
    if not retired:
        return None
    document["components"] |= retired
    return json.dumps(document, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class _Namer:
    device: str
    gateway_id: str
    root: str

    def topic(self, channel: Channel, name: str) -> str:
        return topic_for(Address(self.gateway_id, channel, name), self.root)

    def entity(self, key: str, platform: str, name: str, **rest: object) -> Entity:
        """Build one entity; `rest` is as Home Assistant names it, None is left out."""
        given = {option: value for option, value in rest.items() if value is not None}
        return {"platform": platform, "unique_id": f"{self.device}_{key}", "name": name, **given}

    def availability(self, pipeline: str) -> list[dict[str, str]]:
        """The gateway must be there, and the pipeline must run."""
        return [
            {"topic": self.topic("availability", AVAILABILITY_NAME), "value_template": _ONLINE},
            {"topic": self.topic("status", pipeline), "value_template": _RUNNING},
        ]


def _components(namer: _Namer, pipelines: Mapping[str, Pipeline], sources: Mapping[str, Source]) -> dict[str, Entity]:
    found = {
        "connectivity": namer.entity(
            "connectivity",
            "binary_sensor",
            "Connectivity",
            device_class="connectivity",
            entity_category="diagnostic",
            state_topic=namer.topic("availability", AVAILABILITY_NAME),
            value_template="{{ 'ON' if value_json.state == 'online' else 'OFF' }}",
        )
    }
    for name, pipeline in pipelines.items():
        found |= _pipeline(namer, name, pipeline, is_camera=_is_camera(sources.get(pipeline.source)))
    return found


def _pipeline(namer: _Namer, name: str, pipeline: Pipeline, *, is_camera: bool) -> dict[str, Entity]:
    events, status = namer.topic("event", name), namer.topic("status", name)
    key, words = _safe(name), name.replace("_", " ").replace("-", " ").capitalize()
    there = {"availability": namer.availability(name), "availability_mode": "all"}
    gateway_there = {"availability": there["availability"][:1], "availability_mode": "all"}
    default_class = "motion" if is_camera else "problem"
    found: dict[str, Entity] = {
        # Retained, so it is right after a restart of Home Assistant; the ones per rule follow the next event.
        f"{key}_open": namer.entity(
            f"{key}_open",
            "binary_sensor",
            f"{words} event",
            device_class=default_class,
            state_topic=status,
            value_template="{{ 'ON' if value_json.open_events | int(0) > 0 else 'OFF' }}",
            **there,
        ),
        f"{key}_score": namer.entity(
            f"{key}_score",
            "sensor",
            f"{words} last score",
            state_class="measurement",
            suggested_display_precision=2,
            state_topic=events,
            value_template="{{ value_json.score }}",
            json_attributes_topic=events,
            **there,
        ),
        f"{key}_events": namer.entity(
            f"{key}_events",
            "event",
            f"{words} events",
            device_class="motion" if is_camera else None,
            event_types=["new", "update", "end"],
            state_topic=events,
            value_template=(
                "{{ dict(event_type=value_json.type, event_id=value_json.event_id, label=value_json.label,"
                " rule=value_json.rule, score=value_json.score, reason=value_json.reason) | tojson }}"
            ),
            **there,
        ),
        f"{key}_running": namer.entity(
            f"{key}_running",
            "binary_sensor",
            f"{words} running",
            device_class="running",
            entity_category="diagnostic",
            state_topic=status,
            value_template="{{ 'ON' if value_json.state in ['running', 'degraded'] else 'OFF' }}",
            **gateway_there,
        ),
        f"{key}_rate": namer.entity(
            f"{key}_rate",
            "sensor",
            f"{words} inference rate",
            state_class="measurement",
            unit_of_measurement="1/s",
            entity_category="diagnostic",
            state_topic=status,
            value_template="{{ value_json.inferences_per_second }}",
            **there,
        ),
    }
    for rule in pipeline.rules:
        labels: list[str | None] = [*rule.labels] if rule.labels else [None]
        for label in labels:
            suffix = "_".join([key, "rule", _safe(rule.name), *([_safe(label)] if label else [])])
            title = f"{words} {rule.name}" if label is None else f"{words} {rule.name} {label}"
            found[suffix] = namer.entity(
                suffix,
                "binary_sensor",
                title,
                device_class=_class_of(label, default_class),
                state_topic=events,
                value_template=_rule_template(rule, label),
                **there,
            )
    return found


def _condition(rule: Rule, label: str | None) -> str:
    parts = [f"value_json.rule == {json.dumps(rule.name)}", "value_json.reason != 'low-confidence'"]
    if label is not None:
        parts.append(f"value_json.label == {json.dumps(label)}")
    return " and ".join(parts)


def _rule_template(rule: Rule, label: str | None) -> str:
    """ON while an event of the rule is open; nothing, which Home Assistant ignores, for events of other rules."""
    state = "{{ 'OFF' if value_json.type == 'end' else 'ON' }}"
    return f"{{% if {_condition(rule, label)} %}}{state}{{% endif %}}"


def _class_of(label: str | None, otherwise: str) -> str:
    return "occupancy" if label is not None and label.lower() in _PEOPLE else otherwise


def _is_camera(source: Source | None) -> bool:
    if isinstance(source, ReplaySource):
        return source.file.suffix.lower() in _VIDEO
    return isinstance(source, CameraSource)


def _safe(text: str) -> str:
    return _UNSAFE.sub("_", text)
