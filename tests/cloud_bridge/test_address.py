import pytest

from cloud_bridge.address import broker_address, is_loopback
from cloud_bridge.config import Broker
from cloud_bridge.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://127.0.0.1", "mqtt://127.0.0.1:1883"),
        ("mqtt://localhost:1884/", "mqtt://localhost:1884"),
        ("mqtt://[::1]:1", "mqtt://[::1]:1"),
        ("mqtts://broker.example", "mqtts://broker.example:8883"),
    ],
)
def test_addresses_are_read(url: str, shown: str) -> None:
    assert str(broker_address(Broker(url=url))) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mqtt://",
        "broker",
        "mqtt://10.0.0.1",
        "mqtt://h:99999",
        "mqtt://127.0.0.1/x",
        "ws://127.0.0.1",
        "mqtt://[::1",
    ],
)
def test_what_is_no_address_or_in_the_clear_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        broker_address(Broker(url=url))


def test_only_this_machine_is_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "127.8.9.1", "::1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "10.0.0.1", "localhost.example", ""]))
