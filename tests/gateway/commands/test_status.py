"""`gateway status`."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import msgspec
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.control import ControlServer, Handler, ask
from gateway.errors import ControlError
from gateway.report import (
    ClassReport,
    GatewayStatus,
    IdentityReport,
    KeyReport,
    LinkReport,
    OutboxReport,
    VaultReport,
)
from gateway.wire.messages import ModelRef, PipelineStatus
from tests.simulators.waiting import wait_for

STATUS = GatewayStatus(
    gateway="dock-7",
    version="0.1.0",
    at="2026-01-31T12:00:00.000Z",
    uptime_seconds=22_800,
    pid=42,
    pipelines=[
        PipelineStatus(
            pipeline="door",
            state="degraded",
            source_state="lost",
            at="",
            model=ModelRef(name="person-detector", version="1.2.0"),
            backend="litert-cpu",
            inferences=7,
            dropped={"newer-frame": 2, "garbage": 1},
            last_error="no route to the camera",
        )
    ],
    outbox=OutboxReport(
        state="open", epoch="9f86d081884c7d65", classes={"event": ClassReport(depth=12, size_bytes=2048)}
    ),
    cloud=LinkReport(state="connected", broker="mqtts://bridge"),
    partition="healthy",
    components={"metrics": "ConfigError: port taken"},
)


@pytest.fixture(params=[STATUS])
def socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A daemon that answers `status`, in a thread of its own."""
    path = tmp_path / "gateway.sock"
    loop = asyncio.new_event_loop()
    handlers: dict[str, Handler] = {"status": lambda: request.param}
    task = loop.create_task(ControlServer(path, handlers).run())

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()

    thread = Thread(target=serve)
    thread.start()

    def answers() -> bool:
        try:
            ask(path, "status")
        except ControlError:
            return False
        return True

    wait_for(answers, what="the control socket answers")
    yield path
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)


def test_people_see_what_matters(socket: Path) -> None:
    run = CliRunner().invoke(main, ["status", "--socket", str(socket)])
    assert run.exit_code == 0, run.output
    for words in (
        "dock-7: up 6 h 20 min", "connected mqtts://bridge, healthy", "person-detector@1.2.0", "lost",
        "no route to the camera", "metrics: ConfigError: port taken", "2.0 KiB", "not configured",
    ):  # fmt: skip
        assert words in run.output


def test_programs_get_json(socket: Path) -> None:
    run = CliRunner().invoke(main, ["status", "--socket", str(socket), "--json"])
    assert json.loads(run.output)["pipelines"][0]["dropped"] == {"newer-frame": 2, "garbage": 1}


def test_the_socket_is_found_by_the_configuration(socket: Path) -> None:
    file = socket.parent / "gateway.yaml"
    file.write_text("gateway: {id: dock-7, state_directory: .}\nvault: {level: software}\nsources: {}\npipelines: {}\n")
    run = CliRunner().invoke(main, ["status", "--config", str(file)])
    assert run.exit_code == 0
    assert "dock-7" in run.output


@pytest.mark.parametrize("socket", [{"gateway": "of another version"}], indirect=True)
def test_an_answer_of_another_version_is_no_crash(socket: Path) -> None:
    run = CliRunner().invoke(main, ["status", "--socket", str(socket)])
    assert run.exit_code == 3
    assert "restart it" in run.output
    assert CliRunner().invoke(main, ["status", "--socket", str(socket), "--json"]).exit_code == 0


SECURED = msgspec.structs.replace(
    STATUS,
    pipelines=[msgspec.structs.replace(STATUS.pipelines[0], state="starting", waits_for="key", last_error="PCR 11")],
    vault=VaultReport(
        level="software",
        initialised=True,
        warnings=["level software: for development only"],
        problems=["image-1: PCR 11 differs"],
        releases=["a 1.0.0", "b 1.0.0"],
        keys=[KeyReport(label="a 1.0.0", release="ab", remaining_seconds=7200.0)],
    ),
    identity=IdentityReport(
        state="refused",
        level="tpm",
        spiffe_id="spiffe://sluice.test/gateway/dock-7",
        expires_in_seconds=1800.0,
        reason="PCR 11 differs (wrong-pcr)",
    ),
)


@pytest.mark.parametrize("socket", [SECURED], indirect=True)
def test_vault_and_identity_are_shown_with_what_is_wrong(socket: Path) -> None:
    run = CliRunner().invoke(main, ["status", "--socket", str(socket)])
    assert run.exit_code == 0, run.output
    for words in (
        "vault:  level software, NOT READY, 2 releases sealed", "warning: level software: for development only",
        "failed: image-1: PCR 11 differs", "the key of a 1.0.0 is leased for another 2 h",
        "identity: refused, valid for 30 min, spiffe://sluice.test/gateway/dock-7",
        "failed: PCR 11 differs (wrong-pcr)", "waits (key)",
    ):  # fmt: skip
        assert words in run.output
