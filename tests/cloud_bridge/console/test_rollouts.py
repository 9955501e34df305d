"""Rollouts on the console: everybody who may look sees them; who may act has shown the token on the console's page."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.identity.database import SqliteDatabase
from cloud_bridge.twins.database import FLEET
from tests.cloud_bridge.console.conftest import metrics_text
from tests.cloud_bridge.rollout.kit import Stage
from tests.simulators.bridge_data import a_fleet
from tests.simulators.ota_device import slow

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    database = SqliteDatabase(tmp_path / "fleet.db", FLEET)
    yield Stage(database)
    database.close()


def console(stage: Stage, token_file: Path | None = None) -> httpx.AsyncClient:
    app = create_app(a_fleet(), ConsoleSettings(token_file=token_file), metrics_text, rollouts=stage.desk)
    headers = {} if token_file is None else {"Authorization": f"Bearer {TOKEN}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470", headers=headers)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    return file


async def test_rollouts_are_shown_with_waves_gates_and_history(stage: Stage) -> None:
    stage.add(4)
    stage.devices["gw-001"].trials = slow
    made = stage.desk.create(stage.plan("rest"))
    for _ in range(3):
        stage.turn()
    async with console(stage) as client:
        listed = await client.get("/rollouts")
        shown = await client.get(f"/rollouts/{made.id}")
    assert listed.status_code == shown.status_code == 200
    assert made.id in listed.text
    assert 'aria-current="page">Rollouts' in listed.text
    assert "halted" in shown.text
    assert "detector@1.1.0" in shown.text
    assert "failing-share" in shown.text
    assert "Set console.token_file" in shown.text
    assert "<form" not in shown.text


async def test_without_a_token_the_console_only_shows(stage: Stage) -> None:
    stage.add(1)
    made = stage.desk.create(stage.plan("rest"))
    async with console(stage) as client:
        answer = await client.post(f"/rollouts/{made.id}/abort")
    assert answer.status_code == 403
    assert stage.rollout(made.id).phase == "running"


async def test_with_the_token_a_rollout_is_paused_resumed_and_aborted(stage: Stage, token_file: Path) -> None:
    stage.add(1)
    made = stage.desk.create(stage.plan("rest"))
    async with console(stage, token_file) as client:
        assert "Abort, and take everything back" in (await client.get(f"/rollouts/{made.id}")).text
        for deed, phase in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
            answer = await client.post(f"/rollouts/{made.id}/{deed}")
            assert (answer.status_code, answer.headers["location"]) == (303, f"/rollouts/{made.id}")
            assert stage.rollout(made.id).phase == phase
        assert (await client.post(f"/rollouts/{made.id}/pause")).status_code == 409
    assert stage.desk.report(made.id).history[-1].who.startswith("console")


async def test_a_page_from_elsewhere_and_a_stranger_cannot_act(stage: Stage, token_file: Path) -> None:
    stage.add(1)
    made = stage.desk.create(stage.plan("rest"))
    async with console(stage, token_file) as client:
        elsewhere = await client.post(f"/rollouts/{made.id}/abort", headers={"Sec-Fetch-Site": "cross-site"})
        del client.headers["Authorization"]
        stranger = await client.post(f"/rollouts/{made.id}/abort")
    assert elsewhere.status_code == 403
    assert stranger.status_code == 303
    assert stranger.headers["location"].startswith("/login")
    assert stage.rollout(made.id).phase == "running"


async def test_what_is_not_there_is_said(stage: Stage, token_file: Path) -> None:
    async with console(stage, token_file) as client:
        assert "No rollout yet" in (await client.get("/rollouts")).text
        assert (await client.get("/rollouts/nothing")).status_code == 404
        assert (await client.post("/rollouts/nothing/abort")).status_code == 409
        assert (await client.post("/rollouts/nothing/dance")).status_code == 404


async def test_a_bridge_without_rollouts_has_no_page_of_them() -> None:
    app = create_app(a_fleet(), ConsoleSettings(), metrics_text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470") as client:
        assert (await client.get("/rollouts")).status_code == 404
        assert "/rollouts" not in (await client.get("/")).text
