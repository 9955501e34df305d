"""Reads claim files strictly: every mistake is told with its line and what to do."""

import binascii
import hashlib
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import inspect

from gateway.appliance.errors import ClaimError
from gateway.config import Cloud, Local, Log, Metering, Metrics, Models, Name, Os, Outbox, Pipeline, Source
from gateway.configload.document import Mapping, Node, Place, Scalar, Sequence, parse
from gateway.configload.paths import Surroundings
from gateway.configload.problems import Problem
from gateway.configload.typed import Walk
from gateway.wire.claimfile import CLAIM_VERSION, MAX_CLAIM_BYTES, CarriedClaim, ClaimFile
from gateway.wire.identity import claim_code

SETTINGS: Final = Path("/etc/sluice")
"""Where relative paths of a fragment will be looked for."""

_SSH_KEY: Final = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com) [A-Za-z0-9+/=]+( .*)?"
)
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?")
_MAX_SECRET_BYTES: Final = 16 * 1024


class Fragment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parts of gateway.yaml that a claim may bring; who the device is and whom it believes stands in the claim."""

    sources: dict[Name, Source] = {}
    pipelines: dict[Name, Pipeline] = {}
    models: Models = Models()
    cloud: Cloud = Cloud()
    metering: Metering = Metering()
    local: Local = Local()
    outbox: Outbox = Outbox()
    metrics: Metrics = Metrics()
    os: Os = Os()
    log: Log = Log()


class _Whole(ClaimFile, frozen=True, kw_only=True):
    """The types that a claim file is checked against."""

    config: Fragment = Fragment()


class InvalidClaimError(ClaimError):
    """A claim file with mistakes, all of them."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.told(name) for problem in problems))
        self.problems = problems


def read_claim(text: bytes, name: str) -> CarriedClaim:
    """Read a claim file.

    Args:
        text: YAML, at most `MAX_CLAIM_BYTES`.
        name: of the file, for messages.

    Raises:
        InvalidClaimError: it has mistakes; all are told, each with line, column and remedy.
    """
    if len(text) > MAX_CLAIM_BYTES:
        message = f"the file has {len(text)} bytes or more, at most {MAX_CLAIM_BYTES} are read"
        raise InvalidClaimError(name, [Problem(1, 1, "", message, "this is hardly a claim file")])
    document = parse(text)
    if document.root is None or document.problems:
        raise InvalidClaimError(name, document.problems)
    _require_version(document.root, name)
    walk = Walk(Surroundings(SETTINGS, {}, require_files=False))
    kind = inspect.type_info(_Whole)
    assert isinstance(kind, inspect.StructType)
    checked = walk.members(document.root, kind, "", {})
    problems = list(walk.problems)
    if not problems:
        plain = {key: value for key, value in checked.items() if key != "config"}
        config = document.root.members.get("config")
        # As it stands in the file: what the check above has made of paths is for this machine, at this time.
        plain["config"] = plain_of(config.node) if config is not None else {}
        claim = msgspec.convert(plain, CarriedClaim)
        problems += contradictions(claim, walk.places)
    if problems:
        raise InvalidClaimError(name, sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return claim


def check_carried(claim: CarriedClaim, name: str) -> CarriedClaim:
    """Check a claim that came as a QR code as strictly as a file; places are of the file that it would be.

    Raises:
        InvalidClaimError: it has mistakes.
    """
    return read_claim(msgspec.yaml.encode(msgspec.to_builtins(claim)), name)


def _require_version(root: Mapping, name: str) -> None:
    member = root.members.get("version")
    value = member.node.value if member is not None and isinstance(member.node, Scalar) else None
    if value == CLAIM_VERSION:
        return
    place = member.place if member is not None else root.place
    if isinstance(value, int) and value > CLAIM_VERSION:
        message = f"the file is of version {value}, this image reads {CLAIM_VERSION}"
        remedy = "update the image first, or have a bridge of this version make the file"
    else:
        message, remedy = "`version` must come with the file", f"write `version: {CLAIM_VERSION}`"
    raise InvalidClaimError(name, [Problem(place.line, place.column, "version", message, remedy)])


def contradictions(claim: CarriedClaim, places: dict[str, Place]) -> Iterator[Problem]:
    """Check the parts against each other, and what types cannot say."""

    def problem(path: str, message: str, remedy: str) -> Problem:
        place = places.get(path) or places.get(path.partition("[")[0]) or Place(1, 1)
        return Problem(place.line, place.column, path, message, remedy)

    yield from _whom_to_believe(claim, problem)
    yield from _addresses(claim, problem)
    for at, key in enumerate(claim.ssh):
        if _SSH_KEY.fullmatch(key) is None:
            remedy = "one line of a `.pub` file, without options: `ssh-ed25519 AAAA… name`"
            yield problem(f"ssh[{at}]", "this is no public key", remedy)
    for name, secret in claim.secrets.items():
        if len(secret.encode()) > _MAX_SECRET_BYTES:
            yield problem(f"secrets.{name}", f"longer than {_MAX_SECRET_BYTES} bytes", "a secret is short")
    try:
        ZoneInfo(claim.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield problem("time_zone", "no such time zone", "write it as in `Europe/Berlin`, or `UTC`")
    cloud = claim.config.get("cloud")
    if isinstance(cloud, dict) and cloud.get("brokers") and claim.brokers:
        yield problem("config.cloud", "brokers are given twice", "keep `brokers` at the top and remove these")


def _whom_to_believe(claim: CarriedClaim, problem: Any) -> Iterator[Problem]:
    remedy = "`cloud-bridge identity token create NAME --claim-file FILE` writes a whole one"
    code = claim_code(claim.code) if claim.code is not None else None
    if claim.code is not None and code is None:
        yield problem("code", "this is no claim code", f"it begins with sluice1. and has three parts; {remedy}")
    if claim.code is None and claim.fingerprint is None:
        yield problem("code", "neither `code` nor `fingerprint` is there, so nobody could be believed", remedy)
    fingerprint = code.fingerprint if code is not None else claim.fingerprint
    if code is not None and claim.fingerprint is not None and claim.fingerprint.lower() != code.fingerprint.lower():
        yield problem("fingerprint", "it is of another authority than the code", f"remove it, or {remedy}")
    if claim.ca is not None and fingerprint is not None and fingerprint.lower() not in _fingerprints(claim.ca):
        yield problem("ca", "none of these certificates has the fingerprint of the code", f"remove `ca`, or {remedy}")
    if claim.registry_root is not None:
        try:
            msgspec.json.decode(claim.registry_root, type=dict[str, Any])
        except msgspec.DecodeError:
            yield problem("registry_root", "this is no root.json", "put the text of the repository's 1.root.json here")


def _fingerprints(pem: str) -> set[str]:
    """Return SHA-256 over each certificate of a PEM file; an unreadable one has none."""
    found: set[str] = set()
    for body in re.findall(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----", pem):
        try:
            found.add(hashlib.sha256(binascii.a2b_base64(body)).hexdigest())
        except binascii.Error:
            continue
    return found


def _addresses(claim: CarriedClaim, problem: Any) -> Iterator[Problem]:
    for path, url in (("identity", claim.identity), ("registry", claim.registry)):
        if url is not None and not _is_url(url, "https"):
            yield problem(path, "not an https:// address", "write it as in https://bridge.example:8471")
    for at, url in enumerate(claim.brokers):
        if not _is_url(url, "mqtts"):
            yield problem(f"brokers[{at}]", "not an mqtts:// address", "write it as in mqtts://broker.example:8883")
    for at, server in enumerate(claim.ntp):
        if _HOST.fullmatch(server) is None:
            yield problem(f"ntp[{at}]", "this is no host name or address", "write it as in pool.ntp.org")
    for at, network in enumerate(claim.network):
        path = f"network[{at}]"
        try:
            if network.address is not None:
                if "/" not in network.address:
                    raise ValueError
                ip_interface(network.address)
        except ValueError:
            yield problem(path, f"{network.address!r} is no address with its network", "write it as in 192.0.2.7/24")
        for each in [*network.dns, *([network.gateway] if network.gateway is not None else [])]:
            try:
                ip_address(each)
            except ValueError:
                yield problem(path, f"{each!r} is no address", "gateway and dns are addresses such as 192.0.2.1")
        if network.address is None and network.gateway is not None:
            yield problem(path, "a gateway without an address", "give both, or neither for DHCP")


def _is_url(text: str, scheme: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme == scheme and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return False


def plain_of(node: Node) -> Any:
    """Return a tree without its places, as it stands in the file."""
    match node:
        case Mapping(members=members):
            return {key: plain_of(member.node) for key, member in members.items()}
        case Sequence(items=items):
            return [plain_of(item) for item in items]
        case Scalar(value=value):
            return value
