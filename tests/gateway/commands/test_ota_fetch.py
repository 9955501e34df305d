"""`gateway ota import`, `refresh` and `offered`, at a device without any way but a stick."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.commands.ota_fetch import import_command, offered_command, refresh_command
from gateway.errors import ConfigError, ControlError
from gateway.ota.errors import OtaError, TrustError
from tests.simulators.hostile_repository import SignedRepository

KEYS_MISSING = (
    "{}: this device has no `identity`, so no bridge grants it one; `cloud-bridge model extract NAME@VERSION DIR` "
    "beside the bridge writes the release in clear, and `gateway vault import DIR/NAME/VERSION` here seals it"
)


class Bench:
    """A configuration, a stick, and the repository it was copied from."""

    def __init__(self, directory: Path) -> None:
        self.served = SignedRepository(datetime.now(UTC))
        self.stick = directory / "stick"
        self.state = directory / "state"
        self.config = directory / "gateway.yaml"
        root = directory / "root.json"
        root.write_bytes(self.served.anchor)
        self.config.write_text(
            f"gateway: {{id: dock-7, state_directory: {self.state}}}\n"
            "vault: {level: software}\n"
            "sources: {own: {type: health}}\n"
            "pipelines: {own: {source: own, model: process-anomaly}}\n"
            f"ota: {{root_file: {root}, hardware: test-board}}\n"
        )

    def publish(self) -> None:
        self.served.publish()
        self.served.save(self.stick)

    def imported(self, *words: str) -> Result:
        return CliRunner().invoke(import_command, [str(self.stick), *words, "--config", str(self.config)])

    def kept(self) -> int:
        return len(list((self.state / "ota/imported").glob("*")))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_newest_release_of_each_model_is_brought(bench: Bench) -> None:
    bench.served.add_release("press", "1.0.0", token=1, sealed=b"one")
    bench.served.add_release("press", "1.1.0", token=3, sealed=b"two")
    bench.served.add_release("pump", "2.0.0", token=2, sealed=b"three")
    bench.publish()
    result = bench.imported()
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "press 1.1.0: 3 files brought, 0 were here",
        "pump 2.0.0: 1 file brought, 2 were here",  # the golden files have the same bytes
        KEYS_MISSING.format("2 of 2 releases wait for their keys (press@1.1.0, pump@2.0.0)"),
    ]
    assert bench.kept() == 4
    everything = bench.imported("--all", "--json")
    assert [each["version"] for each in json.loads(everything.output)] == ["1.1.0", "2.0.0", "1.0.0"]


def test_a_release_is_brought_by_its_name(bench: Bench) -> None:
    bench.served.add_release("press", "1.0.0", token=1)
    bench.served.add_release("press", "1.1.0", token=2)
    bench.publish()
    assert "press 1.0.0: 3 files" in bench.imported("press@1.0.0").output
    assert isinstance(bench.imported("pump").exception, OtaError)


@pytest.mark.parametrize("level", ["info", "error"])
def test_no_lines_of_the_log_stand_between_the_words(
    bench: Bench, capfd: pytest.CaptureFixture[str], level: str
) -> None:
    bench.config.write_text(f"{bench.config.read_text()}log: {{level: {level}}}\n")
    bench.served.add_release("press", "1.0.0", token=1)
    bench.publish()
    assert bench.imported().exit_code == 0
    bench.served.add_release("press", "1.1.0", token=2, sealed=b"two")
    bench.publish()  # for which the kept snapshot is not the last one any more, which is worth a line of `debug`
    result = bench.imported()
    assert result.output.splitlines() == [
        "press 1.1.0: 1 file brought, 2 were here",
        KEYS_MISSING.format("1 of 1 release waits for its key (press@1.1.0)"),
    ]
    assert capfd.readouterr() == ("", "")


def test_a_stick_of_somebody_else_brings_nothing(bench: Bench) -> None:
    bench.served = SignedRepository(datetime.now(UTC))
    bench.served.add_release("press", "1.0.0")
    bench.served.root.version = 2
    bench.served.publish_root()
    bench.publish()
    assert isinstance(bench.imported().exception, TrustError)
    assert bench.kept() == 0


def test_a_tampered_or_missing_file_is_named_and_nothing_of_it_is_kept(bench: Bench) -> None:
    path = bench.served.add_release("press", "1.0.0")
    bench.publish()
    file = bench.stick / bench.served.place(path)
    file.write_bytes(b"sealed wEights")
    result = bench.imported()
    assert isinstance(result.exception, OtaError)
    assert "model.tflite.sealed" in result.output
    file.unlink()
    assert isinstance(bench.imported().exception, OtaError)
    assert bench.kept() == 2


def test_a_release_for_other_hardware_is_told(bench: Bench) -> None:
    bench.served.add_release("press", "1.0.0", hardware=("coral-devboard",))
    bench.publish()
    result = bench.imported()
    assert "coral-devboard" in result.output
    assert isinstance(result.exception, OtaError)


def test_what_is_offered_is_listed_from_what_is_here(bench: Bench) -> None:
    bench.served.add_release("press", "1.0.0", token=4, hardware=("coral-devboard",))
    bench.publish()
    arguments = ["--config", str(bench.config)]
    assert isinstance(CliRunner().invoke(offered_command, arguments).exception, TrustError)
    refreshed = CliRunner().invoke(refresh_command, ["--from", str(bench.stick), *arguments])
    assert refreshed.output == "refreshed\n"
    listed = CliRunner().invoke(offered_command, arguments).output.splitlines()
    assert listed[1].split()[:4] == ["press", "1.0.0", "4", "coral-devboard"]


def test_a_refresh_over_the_broker_needs_the_running_gateway(bench: Bench) -> None:
    result = CliRunner().invoke(refresh_command, ["--config", str(bench.config)])
    assert isinstance(result.exception, ControlError)
    assert "--from" in str(result.exception)


def test_without_the_section_the_command_says_what_to_write(bench: Bench) -> None:
    text = bench.config.read_text()
    bench.config.write_text(text[: text.index("ota:")])
    bench.publish()
    assert isinstance(bench.imported().exception, ConfigError)


def test_without_the_first_root_nothing_is_believed_until_it_is_there(bench: Bench) -> None:
    bench.served.add_release("press", "1.0.0", token=1, sealed=b"one")
    bench.publish()
    root = bench.config.parent / "root.json"
    root.unlink()
    result = bench.imported()
    assert isinstance(result.exception, OtaError)
    assert "there are no updates until it can be read" in str(result.exception)
    assert bench.kept() == 0
    root.write_bytes(bench.served.anchor)
    assert bench.imported().exit_code == 0, "the control: with it, there is"
