from pathlib import Path

import pytest

from cloud_bridge.console.settings import ConsoleSettings, access_of
from cloud_bridge.errors import ConfigError

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert access_of(ConsoleSettings(host=host)).token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "bridge.example", "fe80::1"])
def test_any_other_host_is_refused_without_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=r"console\.token_file"):
        access_of(ConsoleSettings(host=host))


def test_a_public_name_on_loopback_is_refused_without_a_token() -> None:
    with pytest.raises(ConfigError, match=r"bridge\.example"):
        access_of(ConsoleSettings(host_names=("bridge.example",)))


def test_any_other_host_is_fine_with_a_token(token_file: Path) -> None:
    access = access_of(ConsoleSettings("0.0.0.0", token_file, ("Bridge.Example.",)))
    assert access.token == TOKEN
    assert access.names == {"bridge.example"}
    assert access.any_address


@pytest.mark.parametrize(
    "content", ["", "short", "x" * 5000, "two words that are long enough", "ünïcödeünïcödeünïcödeünïcöde"]
)
def test_an_unusable_token_is_refused_and_never_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ConfigError, match="expected one line") as caught:
        access_of(ConsoleSettings(token_file=file))
    assert content == "" or content not in str(caught.value)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        access_of(ConsoleSettings(token_file=tmp_path / "nowhere"))
