"""Rollouts and drift for programs: the same as on the command line, and behind the same token as everything else."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.plain import rollout_plain
from cloud_bridge.rollout.service import RolloutDesk
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import BridgeData

TOKEN = "0123456789abcdef0123456789abcdef"
PATHS = ("rollouts", "rollouts/a1b2c3", "drift", "drift/events", "drift/proposals")


async def asked(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.get(f"/api/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_rollouts_are_told_with_their_waves_and_history(client: httpx.AsyncClient, rollouts: RolloutDesk) -> None:
    (one,) = (await asked(client, "rollouts"))["rollouts"]
    assert one == msgspec.to_builtins(rollout_plain(rollouts.list()[0])) | {"findings": []}
    assert (one["id"], one["release"], one["phase"]) == ("a1b2c3", "detector@1.1.0", "running")
    whole = await asked(client, "rollouts/a1")
    assert [wave["state"] for wave in whole["waves"]] == ["waiting", "waiting"]
    assert [line["kind"] for line in whole["history"]] == ["created"]


async def test_drift_is_told_the_worst_first_and_filtered(client: httpx.AsyncClient) -> None:
    found = await asked(client, "drift")
    assert [one["level"] for one in found["findings"]] == ["alarm", "ok"]
    assert (await asked(client, "drift?limit=1"))["count"] == 2
    assert [one["subject"] for one in (await asked(client, "drift?level=warning"))["findings"]] == ["plant-a/motor"]
    assert [one["subject"] for one in (await asked(client, "drift?gateway=plant-b"))["findings"]] == ["plant-b/motor"]
    assert (await asked(client, "drift?model=other"))["findings"] == []
    assert (await client.get("/api/v1/drift?level=bad")).status_code == 400
    assert len((await asked(client, "drift/events"))["events"]) == 2
    assert [one["state"] for one in (await asked(client, "drift/proposals"))["proposals"]] == ["open"]


@pytest.mark.parametrize("path", PATHS)
async def test_without_the_token_nothing_is_told(
    data: BridgeData, rollouts: RolloutDesk, drift: Database, tmp_path: Path, path: str
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    app = create_app(data, ConsoleSettings(token_file=file), metrics_text, rollouts=rollouts, drift=drift)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470") as client:
        assert (await client.get(f"/api/v1/{path}")).status_code == 401
        shown = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get(f"/api/v1/{path}", headers=shown)).status_code == 200


async def test_a_bridge_without_rollouts_and_drift_has_no_such_paths(data: BridgeData) -> None:
    app = create_app(data, ConsoleSettings(), metrics_text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470") as client:
        assert [(await client.get(f"/api/v1/{path}")).status_code for path in PATHS] == [404] * len(PATHS)
