"""What a claim becomes: the right files, a valid configuration, and nothing that a claim may not say."""

from pathlib import PurePosixPath
from typing import Any

import msgspec
import pytest
import yaml

from gateway.appliance.claim import read_claim
from gateway.appliance.errors import ClaimError
from gateway.appliance.plan import BASE, CONFIG, PlannedFile, base_of, laid_over, network_unit, plan
from gateway.configload.loading import check
from gateway.wire.claimfile import EthernetNetwork
from tests.gateway.appliance.claims import CODE, NOW_NS, SSH_KEY, claim, text, whole_claim


def files_of(base: dict[str, Any] | None = None, **more: Any) -> dict[str, PlannedFile]:
    read = read_claim(text(**more), "c")
    files = plan(read, BASE if base is None else base, origin="stick", image="2026.01", now_ns=NOW_NS)
    assert files[-1].path == CONFIG
    return {str(file.path): file for file in files}


def config_of(files: dict[str, PlannedFile]) -> Any:
    return yaml.safe_load(files["gateway.yaml"].content)


def test_a_small_claim_becomes_a_gateway_that_shows_itself() -> None:
    files = files_of()
    config = config_of(files)
    assert config["gateway"]["id"] == "dock-7"
    assert config["identity"] == {"url": "https://bridge.example:8471"}
    assert config["cloud"]["brokers"] == [{"url": "mqtts://broker.example:8883", "identity": True}]
    assert config["vault"]["level"] == "tpm"
    assert list(config["pipelines"]) == ["own-health"]
    assert not check(files["gateway.yaml"].content, require_files=False)
    assert files["identity/claim"].content.decode().strip() == CODE
    assert files["identity/claim"].area == "state"


def test_the_code_stands_in_one_file_only() -> None:
    files = files_of(**whole_claim())
    assert [name for name, file in files.items() if CODE.encode() in file.content] == ["identity/claim"]


def test_secrets_are_private_and_what_lets_people_in_is_not_the_gateways() -> None:
    files = files_of(**whole_claim())
    roots = {name for name, file in files.items() if file.owner == "root"}
    assert roots == {"ssh/authorized_keys", "network/10-sluice-0.network", "timesyncd.conf"}
    assert all(file.mode == 0o600 for name, file in files.items() if name not in roots)
    assert files["secrets/dock-camera"].content == b"s3cret-of-camera"
    assert files["ssh/authorized_keys"].content.decode() == SSH_KEY + "\n"


def test_a_fragment_brings_pipelines_and_keeps_what_the_image_says() -> None:
    files = files_of(
        config={
            "sources": {
                "dock": {
                    "type": "camera",
                    "device": "rtsp://192.0.2.9/1",
                    "username": "viewer",
                    "password_file": "secrets/dock-camera",
                }
            },
            "pipelines": {"door": {"source": "dock", "model": "person-vehicle-detector"}},
            "outbox": {"queue_entries": 500},
            "cloud": {"publish_events": True},
        }
    )
    config = config_of(files)
    assert list(config["pipelines"]) == ["door"]
    assert config["sources"]["dock"]["password_file"] == "secrets/dock-camera"
    assert config["outbox"] == {"file": "/data/outbox/outbox.db", "queue_entries": 500}
    assert config["cloud"]["publish_events"] is True
    assert config["cloud"]["brokers"][0]["identity"] is True


def test_what_would_make_no_valid_configuration_is_refused() -> None:
    with pytest.raises(ClaimError, match=r"gateway.yaml would not be valid: pipelines.door"):
        files_of(config={"pipelines": {"door": {"source": "nowhere", "model": "m"}}})


def test_a_registry_needs_its_root_from_the_claim_or_from_the_image() -> None:
    with pytest.raises(ClaimError, match=r"add it as `registry_root`"):
        files_of(registry="https://bridge.example:8472")
    files = files_of(registry="https://bridge.example:8472", registry_root='{"signed": {}}')
    assert config_of(files)["ota"] == {"root_file": "registry-root.json", "url": "https://bridge.example:8472"}
    assert files["registry-root.json"].content == b'{"signed": {}}'


def test_a_device_that_the_bridge_knows_by_its_tpm_needs_no_code() -> None:
    files = files_of(code=None, fingerprint="ab" * 32)
    assert "identity/claim" not in files
    assert config_of(files)["identity"]["fingerprint"] == "ab" * 32


def test_the_record_opens_nothing() -> None:
    content = files_of(**whole_claim(reset_digest="cd" * 32))["provisioned.json"].content
    assert CODE.encode() not in content
    assert msgspec.json.decode(content)["labels"] == {"site": "berlin"}


@pytest.mark.parametrize(
    ("network", "lines"),
    [
        (EthernetNetwork(), {"Name=en*", "DHCP=yes"}),
        (
            EthernetNetwork(interface="eth0", address="2001:db8::7/64", gateway="2001:db8::1", dns=["2001:db8::1"]),
            {"Name=eth0", "Address=2001:db8::7/64", "Gateway=2001:db8::1", "DNS=2001:db8::1"},
        ),
    ],
)
def test_a_network_becomes_a_unit_of_networkd(network: EthernetNetwork, lines: set[str]) -> None:
    unit = network_unit(network)
    assert lines <= set(unit.splitlines())


def test_tables_are_merged_and_everything_else_is_replaced() -> None:
    below = {"a": {"x": 1, "y": [1]}, "b": 1}
    assert laid_over(below, {"a": {"y": [2]}, "c": 3}) == {"a": {"x": 1, "y": [2]}, "b": 1, "c": 3}
    assert below == {"a": {"x": 1, "y": [1]}, "b": 1}


def test_a_broken_base_of_the_image_is_told() -> None:
    assert base_of(None) == BASE
    assert base_of("vault: {pcrs: [7]}") == {"vault": {"pcrs": [7]}}
    for broken in ("[", "- a"):
        with pytest.raises(ClaimError, match="install another image"):
            base_of(broken)


def test_paths_stay_below_their_area() -> None:
    for file in files_of(**claim(secrets={"a": "b"})).values():
        assert not file.path.is_absolute()
        assert PurePosixPath("..") not in file.path.parents
