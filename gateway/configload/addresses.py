"""What may be wrong with the addresses of brokers, cameras and Modbus devices."""

import ipaddress
import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from gateway.config import Broker, CameraSource, Identity, ModbusSource
from gateway.shown import has_secret_query, shown

Finding = tuple[str, str, str]
"""The key, what is wrong with it, and the remedy."""

Judgement = tuple[str, Literal["error", "warning"], str, str]

_CAMERA_SCHEMES = ("rtsp", "rtsps", "http", "https")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can be meant by a host name or address."""
    bare = host.strip("[]").rstrip(".").lower()
    if bare == "localhost" or bare.endswith(".localhost"):  # RFC 6761 §6.3
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def broker_problems(broker: Broker) -> Iterator[Judgement]:
    """Report what is wrong with the URL of a broker, and with the files beside it."""
    url = _split(broker.url)
    if url is None or url.scheme not in ("mqtt", "mqtts") or not url.hostname:
        message = f'expected mqtt://host:port or mqtts://host:port, found "{shown(broker.url)}"'
        yield "url", "error", message, _scheme_remedy(broker.url)
        return
    if url.username is not None or url.password is not None:
        remedy = "remove them from the URL; give `username` and `password_file`"
        yield "url", "error", "user names and passwords do not belong into the URL", remedy
    if url.path not in ("", "/") or url.query or url.fragment:
        yield "url", "error", "nothing may follow the port", f"write {url.scheme}://{url.netloc.rpartition('@')[2]}"
    if url.scheme == "mqtt" and not is_loopback(url.hostname) and not broker.allow_plaintext:
        message = f"mqtt:// to {url.hostname} would send everything readable over the network"
        remedy = "use mqtts:// (port 8883), or set `allow_plaintext: true` for a network you trust"
        yield "url", "error", message, remedy
    for key in ("ca_file", "crl_file", "certificate_file", "key_file"):
        if url.scheme == "mqtt" and getattr(broker, key) is not None:
            yield key, "warning", "has no meaning for mqtt://", "use mqtts://"
    if broker.identity:
        yield from _identity_problems(broker, url.scheme)
    if (broker.certificate_file is None) != (broker.key_file is None):
        given, missing = ("key_file", "certificate_file")[:: 1 if broker.key_file else -1]
        yield given, "error", f"`{given}` needs `{missing}`", f"add `{missing}`"
    if broker.password_file is not None and broker.username is None and broker.protocol == "3.1.1":
        # MQTT 3.1.1 §3.1.2.9: without a user name the password flag must be 0.
        yield "password_file", "error", "MQTT 3.1.1 knows no password without a user name", "add `username`"


def _identity_problems(broker: Broker, scheme: str) -> Iterator[Judgement]:
    if scheme == "mqtt":
        yield "identity", "error", "a certificate cannot be shown over mqtt://", "write mqtts:// in `url`"
    for key in ("ca_file", "crl_file", "certificate_file", "key_file"):
        if getattr(broker, key) is not None:
            message = f"`{key}` has no place beside `identity: true`, which brings the certificate and whom to believe"
            yield key, "error", message, f"remove `{key}`, or `identity`"
    for key in ("username", "password_file"):
        if getattr(broker, key) is not None:
            yield key, "warning", "a broker that knows us by our certificate takes no login", f"remove `{key}`"


def repository_problems(url: str) -> Iterator[Finding]:
    """Report what is wrong with the address of the repository of releases."""
    parts = _split(url)
    if parts is None or parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
        message = f'expected https://host:8472, found "{shown(url)}"'
        yield (
            "url",
            message,
            "the registry is served over https alone; without `url`, releases come by MQTT",
        )


def identity_problems(identity: Identity) -> Iterator[Finding]:
    """Report what is wrong with the address of the bridge's identity listener."""
    url = _split(identity.url)
    if url is None or url.scheme != "https" or not url.hostname:
        message = f'expected https://host:8471, found "{shown(identity.url)}"'
        yield "url", message, "the listener of `cloud-bridge` has port 8471 unless configured otherwise"
    elif url.path not in ("", "/") or url.query or url.fragment or url.username is not None:
        yield "url", "only host and port belong here", f"write https://{url.netloc.rpartition('@')[2]}"


def _scheme_remedy(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    near = {"tcp": "mqtt", "ssl": "mqtts", "tls": "mqtts", "http": "mqtt", "https": "mqtts"}.get(scheme.lower())
    if separator and near:
        return f"write {near}://{shown('://' + rest)[3:]}"
    return (
        "write mqtts://host:8883" if separator else f"write mqtts://{url}" if re.match(r"[\w.-]+(:\d+)?$", url) else ""
    )


def camera_problems(source: CameraSource) -> Iterator[Judgement]:
    """Report what is wrong with the device of a camera."""
    url = _split(source.device)
    if not source.device:
        yield "device", "error", "the device is empty", "write /dev/video0, rtsp://…, http://… or a video file"
    elif "://" in source.device:
        if url is None or url.scheme not in _CAMERA_SCHEMES or not url.hostname:
            message = f'cannot open "{shown(source.device)}"'
            remedy = f"known are {', '.join(f'{scheme}://' for scheme in _CAMERA_SCHEMES)} and files"
            yield "device", "error", message, remedy
        elif url.password is not None or url.username is not None:
            remedy = "remove them from the URL; give `username` and `password_file`"
            yield "device", "error", "user names and passwords do not belong into the URL", remedy
        elif has_secret_query(source.device):
            message = f'the query of "{shown(source.device)}" holds what looks like a secret, for all to read'
            remedy = (
                "move what follows the `?` into a file and name it in `query_file`; or give `username` and "
                "`password_file`, if the camera takes them"
            )
            yield "device", "warning", message, remedy
    if source.query_file is not None and "://" not in source.device:
        yield "query_file", "error", "only the address of a camera on the network has a query", "remove `query_file`"
    if source.password_file is not None and source.username is None:
        yield "password_file", "error", "`password_file` needs `username`", "add `username`"


def modbus_problems(source: ModbusSource) -> Iterator[Finding]:
    """Report what is wrong with a Modbus device."""
    url = _split(source.device)
    if url is None or url.scheme not in ("tcp", "serial"):
        yield "device", "expected tcp://host:502 or serial:///dev/ttyUSB0?baudrate=19200", ""
    elif url.scheme == "tcp" and not url.hostname:
        yield "device", "the host is missing", "write tcp://host:502"
    elif url.scheme == "serial" and not url.path.startswith("/"):
        yield "device", "the serial device is missing", "write serial:///dev/ttyUSB0"
    if not source.registers:
        yield "registers", "no registers", "list those to read: - {address: 0}"


def _split(url: str) -> SplitResult | None:
    """Split a URL; None when it is none or its port is no port."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises when it is not a number from 0 to 65535
    except ValueError:
        return None
    return parts
