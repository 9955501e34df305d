"""The `gateway` command: help, exit statuses, and what it does not import."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from gateway.cli import Commands, exit_status, main
from gateway.errors import ConfigAwayError, ConfigError, ControlError, GatewayError, ModelError, RequestRefusedError
from gateway.version import program_version


def test_the_help_lists_the_commands_and_the_exit_statuses() -> None:
    run = CliRunner().invoke(main, ["--help"])
    assert run.exit_code == 0
    assert all(name in run.output for name in Commands.lazy)
    assert "3  no gateway is running" in run.output


@pytest.mark.parametrize("name", [name for name in Commands.lazy if name != "run"])
def test_every_command_has_help(name: str) -> None:
    run = CliRunner().invoke(main, [name, "--help"])
    assert run.exit_code == 0, run.output


def test_the_version_is_told() -> None:
    assert program_version() in CliRunner().invoke(main, ["--version"]).output


def test_wrong_usage_has_status_2() -> None:
    assert CliRunner().invoke(main, ["dance"]).exit_code == 2
    assert CliRunner().invoke(main, ["status", "--nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError(), 4),
        (ConfigAwayError(), 1),
        (ControlError(), 3),
        (RequestRefusedError(), 1),
        (ModelError(), 1),
        (GatewayError(), 1),
    ],
)
def test_errors_have_their_status(error: GatewayError, status: int) -> None:
    assert exit_status(error) == status


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["status", "--socket", "/nonexistent/s"], 3, "no gateway is running"),
        (["status", "--config", "/nonexistent/c"], 4, "No such file"),
        (["run", "--config", "/nonexistent/c"], 4, "No such file"),
        # Reading address 0 of a process ends as reading a broken disk does; a supervisor is to try that again.
        (["run", "--config", "/proc/self/mem"], 1, "Input/output error; look at the disk"),
        (["outbox", "status", "--file", "/nonexistent/o"], 1, "no such file"),
    ],
)
def test_an_error_is_one_message_and_a_status(arguments: list[str], status: int, says: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == status, run.stderr
    assert says in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["config", "schema"], ["schema", "event"], ["status", "--help"]])
def test_only_run_pays_for_the_runtimes(arguments: list[str]) -> None:
    probe = (
        "import sys\n"
        "from gateway.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'cv2', 'ai_edge_litert', 'numpy', 'paho', 'aiomqtt'} & set(sys.modules)), file=sys.stderr)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", probe, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stderr.splitlines()[-1] == "[]"


def _shell(words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m gateway {words}', sys.executable], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
@pytest.mark.parametrize("words", ["--help", "config reference"])
def test_what_could_not_be_written_is_told_in_one_line(words: str, where: str) -> None:
    run = _shell(f"{words} {where}")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("gateway: standard output")
    assert _shell(f"{words} >/dev/null").returncode == 0, "the control"
