"""What `gateway ota pin`, `unpin` and `rollback` say once a running gateway has carried them out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.commands import ota
from gateway.ota import slots
from gateway.ota.agent import OtaStatus
from gateway.ota.errors import OtaError
from gateway.ota.journal import FILE, Installed, Journal, Slot, installed_from
from gateway.wire.messages import ModelRef
from tests.gateway.commands.test_ota_fetch import Bench
from tests.gateway.commands.test_ota_install import take_key

NEW, PINNED = "press@1.0.0", "press@0.9.0"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def pin(bench: Bench, monkeypatch: pytest.MonkeyPatch, serving: Iterator[str | None]) -> Result:
    """Pin a release at a gateway that takes the wish at once; its answers to `status` say in turn what serves."""
    wanted = installed_from(PINNED)

    def asked(_path: Path, request: str, _arguments: object = None) -> object:
        if request == "ota-pin":
            Journal(bench.state).change(slots.pin("own", wanted, "now"))
        return {}

    def status(_config: object) -> OtaStatus:
        now = next(serving)
        ref = None if now is None else ModelRef(name=now.partition("@")[0], version=now.partition("@")[2])
        return OtaStatus(pipelines={"own": Slot(pinned=wanted)}, serving={"own": ref})

    monkeypatch.setattr(ota, "ask", asked)
    monkeypatch.setattr(ota, "_status", status)
    monkeypatch.setattr(ota, "effective_models", lambda _config, _releases: {"own": PINNED})
    return CliRunner().invoke(ota.command, ["pin", "own", PINNED, "--config", str(bench.config)])


def test_it_says_what_serves_once_that_is_what_was_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pin(bench, monkeypatch, iter([NEW, NEW, PINNED]))
    assert result.exit_code == 0, result.output
    assert result.output == f"pipeline own runs {PINNED}\n"
    assert Journal(bench.state).book.slot("own").pinned == Installed(name="press", version="0.9.0")


def test_a_pipeline_that_runs_nothing_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pin(bench, monkeypatch, iter([None])).output == "done\n"


def test_an_exchange_that_does_not_come_is_told_with_both_releases(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ota, "_CARRIED_OUT_SECONDS", 0.3)

    def old() -> Iterator[str | None]:
        while True:
            yield NEW

    result = pin(bench, monkeypatch, old())
    assert result.exit_code == 0, result.output
    assert f"still runs {NEW}, and is to run {PINNED}" in result.output


def test_a_full_disk_is_named_and_that_the_wish_is_carried_out_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OtaStatus(journal_problem="journal.json cannot be written: No space left on device")
    monkeypatch.setattr(ota, "_CARRIED_OUT_SECONDS", 0.3)
    monkeypatch.setattr(ota, "ask", lambda *_: {})
    monkeypatch.setattr(ota, "_status", lambda _config: full)
    refused = CliRunner().invoke(ota.command, ["pin", "own", PINNED, "--config", str(bench.config)])
    assert isinstance(refused.exception, OtaError)
    assert "No space left on device. It is carried out as soon as the journal can be written" in str(refused.exception)
    said = CliRunner().invoke(ota.command, ["status", "--config", str(bench.config)])
    assert "journal: journal.json cannot be written: No space left on device" in said.output


def test_an_empty_name_is_none_of_a_pipeline(bench: Bench) -> None:
    result = CliRunner().invoke(ota.command, ["rollback", "", "--config", str(bench.config)])
    assert isinstance(result.exception, OtaError)
    assert "there is no pipeline ''" in str(result.exception)


@pytest.mark.parametrize("words", [("rollback", "own"), ("pin", "own", NEW), ("unpin", "own"), ("install", "own", NEW)])
def test_a_damaged_journal_is_left_to_the_gateway_which_tells_of_it(bench: Bench, words: tuple[str, ...]) -> None:
    """A new one of ours would hide the damage, and what was proved with it."""
    bench.served.add_release("press", "1.0.0", token=1)
    bench.publish()
    assert bench.imported().exit_code == 0
    take_key(bench, "press", "1.0.0")
    file = bench.state / "ota" / FILE
    file.write_bytes(b"garbage")
    result = CliRunner().invoke(ota.command, [*words, "--config", str(bench.config)])
    assert isinstance(result.exception, OtaError)
    assert "start the gateway once, then ask again" in str(result.exception)
    assert file.read_bytes() == b"garbage"
