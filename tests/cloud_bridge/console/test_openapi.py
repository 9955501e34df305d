"""The document describes what the console does, and the console does what the document describes."""

import json
import re
from importlib.resources import files
from typing import Any

import httpx
import jsonschema
import pytest

from cloud_bridge.console.api import api_routes
from cloud_bridge.console.query import DEFAULT_LIMIT, MAX_LIMIT
from cloud_bridge.console.watch_api import drift_api, rollout_api
from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.service import RolloutDesk
from gateway.wire.messages import Event, PipelineStatus, json_schema
from tests.simulators.bridge_data import BridgeData

DOCUMENT: dict[str, Any] = json.loads(files("cloud_bridge.console").joinpath("openapi.json").read_bytes())
EXAMPLES = {"gateway": "plant-a", "event_id": "ev-1", "evidence_id": "pic-1", "rollout": "a1b2"}
PATHS = sorted(DOCUMENT["paths"])


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """Make a validator that finds the components."""
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Follow one reference."""
    found: Any = node
    if "$ref" in node:
        found = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
    return dict(found)


def references(node: object) -> list[str]:
    """Return every reference in the document."""
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def example(path: str) -> str:
    """Fill a path in."""
    return re.sub(r"\{(\w+)\}", lambda match: EXAMPLES[match[1]], path)


def test_the_document_is_openapi_and_hangs_together() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    for reference in references(DOCUMENT):
        assert resolved({"$ref": reference}), reference
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert f"#/components/schemas/{name}" in references(DOCUMENT), f"{name} is used nowhere"
    for path, item in DOCUMENT["paths"].items():
        operation = item["get"]
        assert item.keys() == {"get"}
        assert operation["summary"]
        for response in operation["responses"].values():
            assert resolved(response)["description"]
        names = [resolved(parameter) for parameter in operation.get("parameters", [])]
        in_path = {parameter["name"] for parameter in names if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))


def test_every_route_is_described_and_nothing_else(rollouts: RolloutDesk, drift: Database) -> None:
    found = [*api_routes(BridgeData()), *rollout_api(rollouts), *drift_api(drift)]
    routes = {re.sub(r":path\}", "}", route.path) for route in found}
    assert routes | {"/healthz", "/metrics"} == set(PATHS)


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_answers_as_described(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(example(path))
    assert response.status_code == 200
    content = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
    media = response.headers["content-type"].partition(";")[0]
    assert media in content
    if media == "application/json":
        validator(content[media]["schema"]).validate(response.json())


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_takes_exactly_the_parameters_described(client: httpx.AsyncClient, path: str) -> None:
    described = [resolved(parameter) for parameter in DOCUMENT["paths"][path]["get"].get("parameters", [])]
    if path in ("/healthz", "/metrics"):
        assert described == []
        return
    refused = await client.get(example(path), params={"no-such-parameter": "1"})
    assert refused.status_code == 400
    allowed = refused.json()["detail"].partition("allowed here: ")[2].split(", ")
    names = [parameter["name"] for parameter in described if parameter["in"] == "query"]
    assert sorted(allowed) == sorted(names or ["none"])
    for name in names:
        assert (await client.get(example(path), params={name: ""})).status_code == 200


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/api/")])
async def test_every_refusal_is_as_described(client: httpx.AsyncClient, data: BridgeData, path: str) -> None:
    responses = DOCUMENT["paths"][path]["get"]["responses"]
    seen = [await client.get(example(path), params={"x": "1"})]
    if "404" in responses:
        seen.append(await client.get(re.sub(r"\{\w+\}", "nothing", path)))
    if path != "/api/v1/openapi.json":
        data.failing = True
        seen.append(await client.get(example(path)))
    for response in seen:
        described = resolved(responses[str(response.status_code)])["content"]
        validator(described[response.headers["content-type"]]["schema"]).validate(response.json())


def test_limits_are_the_ones_in_force() -> None:
    schema = DOCUMENT["components"]["parameters"]["limit"]["schema"]
    assert (schema["maximum"], schema["default"]) == (MAX_LIMIT, DEFAULT_LIMIT)


@pytest.mark.parametrize(("name", "message"), [("EventBody", "event"), ("Status", "status")])
def test_what_comes_from_the_wire_is_described_with_the_wires_fields(name: str, message: str) -> None:
    definitions: dict[str, Any] = json_schema(message)["$defs"]  # type: ignore[assignment]  # msgspec makes a dict
    kind = {"event": Event, "status": PipelineStatus}[message].__name__
    assert DOCUMENT["components"]["schemas"][name]["properties"].keys() == definitions[kind]["properties"].keys()
