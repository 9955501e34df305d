"""One state directory, one gateway."""

from pathlib import Path

import pytest

from gateway.errors import ConfigError, GatewayError
from gateway.statedir import locked_state


def test_a_second_gateway_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    first = locked_state(tmp_path / "state")
    with pytest.raises(GatewayError, match="another gateway is running"):
        locked_state(tmp_path / "state")
    first.close()
    locked_state(tmp_path / "state").close()


def test_the_directory_is_made_for_the_gateway_alone(tmp_path: Path) -> None:
    locked_state(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_path_that_cannot_be_a_directory_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"gateway\.state_directory"):
        locked_state(tmp_path / "file")
