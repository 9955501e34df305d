"""The cloud of the rig: real broker and bridge behind links that can be cut, and kept together with the device."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.appliance.claim import read_claim
from hil.rig.cloud import Cloud
from tests.simulators.mosquitto import BINARY

pytestmark = pytest.mark.skipif(not BINARY, reason="mosquitto is not installed: apt-get install mosquitto")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path / "cloud", reached_as="10.0.2.2", ek_roots=None, pcrs=(11,))
    try:
        made.prepare()
        made.start()
        yield made
    finally:
        made.close()


def greets(cloud: Cloud) -> bool:
    """Tell whether the identity listener completes a TLS handshake under the name that a device knows."""
    context = ssl.create_default_context(cafile=str(cloud.broker_directory / "services-ca.pem"))
    port = cloud.links["identity"].port
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=20.0) as plain,
        context.wrap_socket(plain, server_hostname="10.0.2.2"),
    ):
        return True
    return False


def test_a_device_finds_the_cloud_under_the_address_of_its_claim_until_the_link_is_cut(
    cloud: Cloud, tmp_path: Path
) -> None:
    assert greets(cloud)
    cloud.cut()
    assert not greets(cloud)
    cloud.mend()
    assert greets(cloud)
    file = tmp_path / "claim.yaml"
    addresses = cloud.addresses
    cloud.run(
        *("identity", "token", "create", "one", "--claim-file", str(file), "--identity-url", addresses["identity"]),
        *("--broker", addresses["broker"]),
    )
    claim = read_claim(file.read_bytes(), "claim.yaml")
    assert (claim.gateway, claim.identity, claim.brokers) == ("one", addresses["identity"], [addresses["broker"]])


def test_a_cloud_that_is_brought_back_knows_what_it_knew_and_nothing_later(cloud: Cloud) -> None:
    cloud.approve("before", {11: "11" * 32})
    cloud.save("kept")
    cloud.approve("after", {11: "22" * 32})
    assert {each["name"] for each in cloud.ask("identity", "states", "list")} == {"before", "after"}
    cloud.restore("kept")
    assert {each["name"] for each in cloud.ask("identity", "states", "list")} == {"before"}
    assert greets(cloud)
