"""The wish to erase a device: who may utter it, and how it waits for the next boot.

Three ways lead to it. On the device: `gateway appliance reset`, by root or the gateway's user. A button: the
board's unit calls the same. A stick with `sluice-reset.yaml`: only where the claim has brought the digest of a
reset code, and only with that code. The id of the gateway alone is printed on labels and stands in every topic; it
opens nothing. The digest is also on the boot partition, so that such a stick helps a device whose data partition cannot
be opened any more. It opens nothing either, and whoever can write there can ask for a reset there, too.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog
import yaml

from gateway.appliance.errors import ApplianceError
from gateway.appliance.places import Places
from gateway.appliance.plan import Provisioned
from gateway.appliance.provisioning import read_provisioned
from gateway.appliance.volumes import Mounter, named_files, volumes
from gateway.vault.errors import VaultError
from gateway.vault.files import write_durably
from gateway.wire.times import rfc3339

log = structlog.get_logger()

RESET_FILE_NAME: Final = "sluice-reset.yaml"
_MAX_RESET_BYTES: Final = 4096

By = Literal["command", "stick"]


class ResetRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The file `reset-request.json`: the next boot erases the device."""

    version: int = 1
    gateway: str
    at: str
    by: By
    why: str = ""


class ResetCode(msgspec.Struct, frozen=True, kw_only=True):
    """The file `sluice-reset-code.json` on the boot partition."""

    version: int = 1
    gateway: str
    reset_digest: str | None = None


class ResetStick(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `sluice-reset.yaml`."""

    version: Literal[1]
    gateway: str
    code: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a stick resets nothing, in words."""

    why: str


def request_reset(places: Places, *, gateway: str | None, by: By, why: str, now_ns: int) -> ResetRequest:
    """Have the next boot erase this device.

    Args:
        places: of the device.
        gateway: who is meant, where somebody has said so; None: whoever this is.
        by: which way the wish has come.
        why: for the log.
        now_ns: UTC.

    Raises:
        ApplianceError: another gateway is meant, or the wish cannot be written down.
    """
    record = read_provisioned(places)
    here = record.gateway if record is not None else ""
    if gateway is not None and gateway != here:
        raise ApplianceError(f"this is {here or 'not provisioned'} and not {gateway}; nothing was done")
    request = ResetRequest(gateway=here, at=rfc3339(now_ns), by=by, why=why)
    try:
        write_durably(places.reset_request, msgspec.json.format(msgspec.json.encode(request)) + b"\n")
    except VaultError as error:
        raise ApplianceError(f"the request is not kept: {error}") from error
    log.warning("reset_requested", gateway=here, by=by, why=why)
    return request


def withdraw_reset(places: Places) -> bool:
    """Take the wish back; returns whether there was one. Once the device has booted it is too late.

    Raises:
        ApplianceError: it cannot be removed.
    """
    try:
        places.reset_request.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ApplianceError(f"{places.reset_request}: {error.strerror or error}") from error
    log.info("reset_withdrawn")
    return True


def stick_allows(content: bytes, record: Provisioned | ResetCode | None) -> ResetStick | Refused:
    """Decide whether what stands in `sluice-reset.yaml` may erase this device. Pure.

    Args:
        content: of the file.
        record: how this device was provisioned, or what the boot partition knows of that.
    """
    if record is None or record.reset_digest is None:
        return Refused("this device was claimed without a reset code; only a command on it can reset it")
    try:
        stick = msgspec.convert(yaml.safe_load(content.decode("utf-8")), ResetStick)
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        return Refused(f"it cannot be read: {' '.join(str(error).split())}; it has `version: 1`, `gateway` and `code`")
    if stick.gateway != record.gateway:
        return Refused(f"it is for {stick.gateway}, this is {record.gateway}")
    if not hmac.compare_digest(reset_digest(stick.code), record.reset_digest.lower()):
        return Refused("its code is not the one of this device; `identity token create` has shown it once")
    return stick


def reset_digest(code: str) -> str:
    """Return the digest of a reset code as a claim carries it; spaces, dashes and case do not count."""
    plain = "".join(code.split()).replace("-", "").lower()
    return hashlib.sha256(b"sluice reset " + plain.encode("utf-8")).hexdigest()


def look_for_stick(places: Places, mounter: Mounter, say: Callable[[str], None], now_ns: int) -> ResetRequest | None:
    """Look once for a stick that resets this device; nothing is mounted where no stick could.

    Where the data partition is not there, the request is the marker on the boot partition.

    Raises:
        ApplianceError: the request cannot be written down.
    """
    provisioned = read_provisioned(places)
    record = provisioned if places.settings.is_dir() else _reset_code(places)
    if record is None or record.reset_digest is None:
        return None
    for origin, content in _offered(places, mounter):
        answer = stick_allows(content, record)
        if isinstance(answer, ResetStick):
            say(f"{origin}: {record.gateway} is erased at the next boot.")
            if provisioned is None:
                return _mark_reset(
                    places, ResetRequest(gateway=answer.gateway, at=rfc3339(now_ns), by="stick", why=origin)
                )
            return request_reset(places, gateway=answer.gateway, by="stick", why=origin, now_ns=now_ns)
        log.warning("reset_refused", origin=origin, reason=answer.why)
        say(f"{origin} resets nothing: {answer.why}")
    return None


def keep_reset_code(places: Places, record: Provisioned) -> None:
    """Have the boot partition know the digest of the reset code, or that there is none; written only when it changes.

    Raises:
        ApplianceError: it cannot be written.
    """
    file = places.reset_code
    wanted = ResetCode(gateway=record.gateway, reset_digest=record.reset_digest)
    try:
        if record.reset_digest is None:
            file.unlink(missing_ok=True)
        elif _reset_code(places) != wanted:
            write_durably(file, msgspec.json.encode(wanted) + b"\n")
    except VaultError as error:
        raise ApplianceError(str(error)) from error
    except OSError as error:
        raise ApplianceError(f"{file}: {error.strerror or error}") from error


def _reset_code(places: Places) -> ResetCode | None:
    try:
        return msgspec.json.decode(places.reset_code.read_bytes(), type=ResetCode)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _mark_reset(places: Places, request: ResetRequest) -> ResetRequest:
    try:
        write_durably(places.reset_marker, msgspec.json.encode(request) + b"\n")
    except VaultError as error:
        raise ApplianceError(f"the request is not kept: {error}") from error
    log.warning("reset_requested", gateway=request.gateway, by=request.by, why=request.why, marker=True)
    return request


def _offered(places: Places, mounter: Mounter) -> Sequence[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for volume in volumes(places.devices, places.sysfs):
        try:
            with mounter.mounted(volume, writable=False) as top:
                files = named_files(top, lambda name: name == RESET_FILE_NAME, _MAX_RESET_BYTES)
                found += [(f"{volume.words}, {name}", content) for name, content in files]
        except ApplianceError as error:
            log.warning("volume_unreadable", volume=volume.words, error=str(error))
    return found


def reset_wished(places: Places) -> bool:
    """Tell whether this boot must erase: it was asked for, or an erasing was cut short."""
    return places.reset_request.exists() or places.reset_marker.exists()


def claim_files(esp: Path) -> list[Path]:
    """Return the claim files on the boot partition."""
    return sorted(esp.glob("sluice-claim*.y*ml")) if esp.is_dir() else []
