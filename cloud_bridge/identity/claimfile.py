"""Claim files and their QR codes: what a person carries from the bridge to a device that is not provisioned yet."""

import hashlib
import io
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import segno
import yaml

from cloud_bridge.config import Config
from cloud_bridge.identity.errors import IdentityError
from gateway.wire.claimfile import CarriedClaim, to_qr

_RESET_ALPHABET: Final = "abcdefghjkmnpqrstuvwxyz23456789"
_RESET_GROUPS: Final = 4
_MASKS: Final = (0, 7, 1, 3, 5, 4, 2, 6)
"""Patterns of ISO/IEC 18004 §7.8, in the order of how often OpenCV 5.0 read codes with them."""
_SCALE: Final = 8
"""Pixels of one dot of a picture."""
_BORDER: Final = 4
"""Dots that are left white around a code (ISO/IEC 18004 §6.3.8)."""

Form = Literal["svg", "png", "terminal"]


@dataclass(frozen=True, slots=True)
class Carried:
    """What goes into a claim beside the gateway's id and its code."""

    identity: str | None  # address of the identity listener; None: made of the configuration
    brokers: tuple[str, ...]
    registry: str | None
    registry_root: str | None  # its first root.json
    authority: str  # PEM
    labels: Mapping[str, str]
    reset_code: str | None = None


def build_claim(
    gateway: str,
    *,
    code: str | None,
    fingerprint: str,
    config: Config,
    carried: Carried,
    template: Mapping[str, Any],
) -> CarriedClaim:
    """Put a claim together; what the command line says stands over the template, which is the same for a whole fleet.

    Raises:
        IdentityError: something is missing, or the template is no claim.
    """
    body: dict[str, Any] = {"version": 1, **template, "gateway": gateway}
    if code is not None:
        body["code"] = code
    else:
        body["fingerprint"] = fingerprint
    identity = carried.identity or template.get("identity") or _listener(config)
    if identity is None:
        raise IdentityError(
            "under which address devices reach this bridge is not known: set identity.names, or give --identity-url"
        )
    body |= {"identity": identity, "ca": carried.authority}
    if carried.brokers:
        body["brokers"] = list(carried.brokers)
    if not body.get("brokers"):
        raise IdentityError(
            "which broker devices use is not known here: give --broker mqtts://broker.example:8883, or a template"
        )
    if carried.registry is not None:
        body["registry"] = carried.registry
    if carried.registry_root is not None and "registry" in body:
        body.setdefault("registry_root", carried.registry_root)
    if carried.labels:
        body["labels"] = {**template.get("labels", {}), **carried.labels}
    if carried.reset_code is not None:
        body["reset_digest"] = reset_digest(carried.reset_code)
    try:
        return msgspec.convert(body, CarriedClaim)
    except msgspec.ValidationError as error:
        raise IdentityError(f"this makes no claim: {error}; docs/appliance.md lists the keys") from error


def read_template(file: Path) -> dict[str, Any]:
    """Read a file with the keys of a claim that are the same for many devices.

    Raises:
        IdentityError: it cannot be read, or has what each device has for itself.
    """
    try:
        plain = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise IdentityError(f"{file}: {error}") from error
    if not isinstance(plain, dict):
        raise IdentityError(f"{file}: expected `key: value` lines, as in a claim file")
    own = {"gateway", "code", "fingerprint", "reset_digest"} & plain.keys()
    if own:
        raise IdentityError(f"{file}: {', '.join(sorted(own))} belongs to one device; remove it from the template")
    return plain


def as_yaml(claim: CarriedClaim, expires_at: str) -> bytes:
    """Return the claim file."""
    head = (
        f"# Claim of {claim.gateway}: good once, until {expires_at}. Whoever has this file can become that gateway.\n"
        "# Put it on a USB stick (FAT or ext4) as sluice-claim.yaml; the device removes it when it has taken it.\n"
    )
    return (head + yaml.safe_dump(msgspec.to_builtins(claim), sort_keys=False, allow_unicode=True)).encode()


def as_picture(claim: CarriedClaim, form: Form) -> bytes:
    """Return the claim as a QR code.

    Raises:
        IdentityError: it is too long for one; says what to leave out.
    """
    # The fingerprint in the code says whom to believe; the certificate, and the registry's root, would not fit.
    try:
        text = to_qr(msgspec.structs.replace(claim, ca=None, registry_root=None))
    except ValueError as error:
        raise IdentityError(str(error)) from error
    code = _readable(text)
    if form == "terminal":
        lines = io.StringIO()
        code.terminal(lines, compact=True, border=_BORDER)
        return lines.getvalue().encode()
    out = io.BytesIO()
    code.save(out, kind=form, scale=_SCALE, border=_BORDER)
    return out.getvalue()


def form_of(name: str) -> Form:
    """Return the form that a file name asks for; `-` is the terminal.

    Raises:
        IdentityError: it asks for none that is made here.
    """
    if name == "-":
        return "terminal"
    suffix = Path(name).suffix.lower()
    if suffix == ".svg":
        return "svg"
    if suffix == ".png":
        return "png"
    raise IdentityError(f"{name}: name a file with .svg or .png, or `-` for the terminal")


def new_reset_code() -> str:
    """Make the code that a reset stick must carry: some 79 bits, in groups that people can read aloud."""
    groups = ("".join(secrets.choice(_RESET_ALPHABET) for _ in range(4)) for _ in range(_RESET_GROUPS))
    return "-".join(groups)


def reset_digest(code: str) -> str:
    """Return the digest of a reset code, as the device compares it: dashes, spaces and case do not count."""
    plain = "".join(code.split()).replace("-", "").lower()
    return hashlib.sha256(b"sluice reset " + plain.encode("utf-8")).hexdigest()


def _listener(config: Config) -> str | None:
    settings = config.identity
    if settings is None or not settings.names or not settings.port:
        return None
    return f"https://{settings.names[0]}:{settings.port}"


def _readable(text: str) -> segno.QRCode:
    """Make a code that the detector of the devices reads.

    OpenCV's fails on up to half of the larger codes that others read, a different half with each mask pattern, and on
    few with the lowest level of correction. Where OpenCV is installed here the first mask that it reads is taken.
    """
    codes = (segno.make(text, error="l", micro=False, boost_error=False, mask=mask) for mask in _MASKS)
    first = next(codes)
    try:
        import cv2  # noqa: PLC0415  # a bridge works without
        import numpy as np  # noqa: PLC0415
    except ImportError:
        return first
    detector = cv2.QRCodeDetector()
    for code in (first, *codes):
        dots = np.array(list(code.matrix_iter(scale=_SCALE, border=_BORDER)), np.uint8)
        _, texts, _, _ = detector.detectAndDecodeMulti((1 - dots) * 255)
        if text in texts:
            return code
    return first
