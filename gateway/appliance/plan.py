"""What a claim becomes on the device: files, the one that makes it valid last. Decides, and touches nothing."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import msgspec
import yaml

from gateway.appliance.claim import SETTINGS
from gateway.appliance.errors import ClaimError
from gateway.configload.loading import interpret
from gateway.configload.paths import Surroundings
from gateway.wire.claimfile import CarriedClaim, EthernetNetwork, GatewayId
from gateway.wire.times import rfc3339

Area = Literal["settings", "state"]
Owner = Literal["gateway", "root"]

CONFIG: Final = PurePosixPath("gateway.yaml")

BASE: Final[dict[str, Any]] = {
    "gateway": {"state_directory": "/var/lib/sluice", "runtime_directory": "/run/sluice"},
    "vault": {
        "policy_key_file": "/usr/share/sluice/policy.pem.pub",
        "policy_directory": "/run/sluice-policy",
        "pcrs": [11],
    },
    "outbox": {"file": "/data/outbox/outbox.db"},
    "local": {"broker": {"url": "mqtt://127.0.0.1:1883"}},
}
"""Where an image brings no gateway.base.yaml of its own."""

OWN_HEALTH: Final[dict[str, Any]] = {
    "sources": {"machine": {"type": "health", "channels": ["load", "memory_used"]}},
    "pipelines": {
        "own-health": {"source": "machine", "model": "process-anomaly", "rules": [{"name": "unusual-load"}]},
    },
}
"""What a device does whose claim names no pipeline: so the bridge sees from the first minute that all of it works."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that will be put in place whole."""

    area: Area
    path: PurePosixPath  # below its area
    content: bytes = field(repr=False)  # may be a secret
    owner: Owner = "gateway"
    mode: int = 0o600


class Provisioned(msgspec.Struct, frozen=True, kw_only=True):
    """The file `provisioned.json`: which claim made this device what it is. Nothing in it opens anything."""

    version: int = 1
    gateway: GatewayId
    at: str
    origin: str  # `usb stick SLUICE`, `camera /dev/video0`
    image: str = ""
    labels: dict[str, str] = {}
    code_id: str = ""  # SHA-256 of the claim code, shortened: two devices with the same id had the same code
    reset_digest: str | None = None


def plan(
    claim: CarriedClaim,
    base: Mapping[str, Any],
    *,
    origin: str,
    image: str,
    now_ns: int,
    registry_root: str | None = None,
) -> list[PlannedFile]:
    """Return all files that a claim becomes; the configuration comes last, for with it the device is provisioned.

    Args:
        claim: checked.
        base: of gateway.yaml, as the image brings it; `BASE` where it brings none.
        origin: where the claim came from, for people.
        image: the version of the image.
        now_ns: UTC.
        registry_root: the path of the image's own root.json, used where the claim brings none.

    Raises:
        ClaimError: what would come out is no valid configuration.
    """
    files: list[PlannedFile] = []

    def put(path: str, content: str, *, area: Area = "settings", owner: Owner = "gateway", mode: int = 0o600) -> None:
        files.append(PlannedFile(area, PurePosixPath(path), content.encode(), owner, mode))

    if claim.code is not None:
        put("identity/claim", claim.code + "\n", area="state")
    if claim.ca is not None:
        put("bridge-ca.pem", claim.ca)
    if claim.registry_root is not None:
        put("registry-root.json", claim.registry_root)
        registry_root = "registry-root.json"
    for name, secret in claim.secrets.items():
        put(f"secrets/{name}", secret)
    # Of root and not of the gateway: a gateway that was broken into must not let anybody in, or lead the traffic.
    if claim.ssh:
        put("ssh/authorized_keys", "\n".join(claim.ssh) + "\n", owner="root", mode=0o644)
    for at, network in enumerate(claim.network):
        put(f"network/10-sluice-{at}.network", network_unit(network), owner="root", mode=0o644)
    if claim.ntp:
        put("timesyncd.conf", f"[Time]\nNTP={' '.join(claim.ntp)}\n", owner="root", mode=0o644)
    record = Provisioned(
        gateway=claim.gateway,
        at=rfc3339(now_ns),
        origin=origin,
        image=image,
        labels=claim.labels,
        code_id=code_id(claim.code),
        reset_digest=claim.reset_digest,
    )
    put("provisioned.json", msgspec.json.format(msgspec.json.encode(record)).decode() + "\n")
    put(str(CONFIG), configuration(claim, base, registry_root=registry_root))
    return files


def code_id(code: str | None) -> str:
    """Return what tells two claim codes apart and gives neither away."""
    return hashlib.sha256(code.encode()).hexdigest()[:16] if code is not None else ""


def configuration(claim: CarriedClaim, base: Mapping[str, Any], *, registry_root: str | None) -> str:
    """Return the text of gateway.yaml: the image's base, then the claim's fragment, then who the device is.

    Raises:
        ClaimError: it is not valid; says what of the claim does not fit.
    """
    fragment: Mapping[str, Any] = claim.config
    if not claim.config.get("pipelines") and not base.get("pipelines"):
        fragment = laid_over(OWN_HEALTH, claim.config)
    identity: dict[str, Any] = {"url": claim.identity}
    if claim.code is None and claim.fingerprint is not None:
        identity["fingerprint"] = claim.fingerprint
    certain: dict[str, Any] = {
        "gateway": {"id": claim.gateway, "time_zone": claim.time_zone},
        "vault": {"level": claim.level},
        "identity": identity,
    }
    if claim.brokers:
        certain["cloud"] = {"brokers": [{"url": url, "identity": True} for url in claim.brokers]}
    if claim.registry is not None:
        if registry_root is None:
            raise ClaimError(
                "registry: neither the claim nor this image has the repository's first root.json; "
                "add it as `registry_root`, or leave `registry` out"
            )
        certain["ota"] = {"root_file": registry_root, "url": claim.registry}
    whole = {"sources": {}, "pipelines": {}} | laid_over(laid_over(base, fragment), certain)
    if claim.level == "software":
        whole["vault"] = {"level": "software"}
    text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
    reading = interpret(text, Surroundings(SETTINGS, {}, require_files=False))
    if reading.errors:
        told = "; ".join(f"{problem.path}: {problem.message}; {problem.remedy}" for problem in reading.errors)
        raise ClaimError(f"with this claim gateway.yaml would not be valid: {told}")
    return f"# Made from the claim of {claim.gateway}. docs/configuration.md explains all keys.\n{text}"


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree over another: tables are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        here = merged.get(key)
        merged[key] = laid_over(here, value) if isinstance(here, Mapping) and isinstance(value, Mapping) else value
    return merged


def network_unit(network: EthernetNetwork) -> str:
    """Return a .network file (systemd.network(5)). Without a static address: DHCP and router advertisements."""
    lines = ["[Match]", f"Name={network.interface}", "", "[Network]"]
    if network.address is None:
        lines.append("DHCP=yes")
    else:
        lines.append(f"Address={network.address}")
    if network.gateway is not None:
        lines.append(f"Gateway={network.gateway}")
    lines += [f"DNS={server}" for server in network.dns]
    return "\n".join(lines) + "\n"


def base_of(text: str | None) -> dict[str, Any]:
    """Return the base of gateway.yaml; text: of the image's file, None where it has none.

    Raises:
        ClaimError: the image is broken.
    """
    if text is None:
        return dict(BASE)
    try:
        base = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ClaimError(f"the image's gateway.base.yaml cannot be read: {error}; install another image") from error
    if not isinstance(base, dict):
        raise ClaimError("the image's gateway.base.yaml is no table; install another image")
    return base
