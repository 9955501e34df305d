"""Why a broker's TLS does not want us: the alert in words, with what to do. Pure.

In TLS 1.3 our handshake is over before the broker has looked at our certificate (RFC 8446, 4.4.4), so its alert comes
with the first read, after the connection seemed to be there.
"""

import re
import ssl
from typing import Final

_OURS: Final = "the broker refuses the certificate of this gateway"
_RENEW: Final = (
    "`gateway identity status` tells how it stands, and `gateway identity renew` asks for another",
    "put a new one where certificate_file and key_file of this broker say",
)
_ALERTS: Final[dict[str, tuple[str, tuple[str, str]]]] = {
    "CERTIFICATE_EXPIRED": (
        f"{_OURS}: by the broker's clock it is over",
        (
            "another is asked for; if that does not help, compare the clocks of gateway, bridge and broker",
            "put a new one where certificate_file says, or set the clock of the broker if that is wrong",
        ),
    ),
    "CERTIFICATE_REVOKED": (
        f"{_OURS}: it was revoked",
        (
            "ask the operator why (`cloud-bridge identity show GATEWAY`); a new claim code brings the gateway back: "
            "`gateway identity enrol CODE`",
            "ask who runs the broker why, and for a new certificate",
        ),
    ),
    "UNKNOWN_CA": (
        f"{_OURS}: it does not know the authority",
        (
            "the broker trusts another bridge's authority: `cloud-bridge broker-config` writes its devices-ca.pem anew",
            "name a certificate of an authority that is in the broker's cafile",
        ),
    ),
    "BAD_CERTIFICATE": (f"{_OURS}: it is not good, perhaps not valid yet by the broker's clock", _RENEW),
    "UNSUPPORTED_CERTIFICATE": (f"{_OURS}: it is of a kind that is not for clients", _RENEW),
    "CERTIFICATE_UNKNOWN": (f"{_OURS} and does not say why; its log may", _RENEW),
    "ACCESS_DENIED": (f"{_OURS} and does not say why; its log may", _RENEW),
    "CERTIFICATE_REQUIRED": (
        "the broker asks for a certificate, and this gateway shows none",
        (
            "`gateway identity status` tells why there is none",
            "name one under certificate_file and key_file of this broker, or say `identity: true`",
        ),
    ),
    "PROTOCOL_VERSION": (
        "the broker speaks no version of TLS that this gateway does",
        ("let it speak TLS 1.2 or 1.3", "let it speak TLS 1.2 or 1.3"),
    ),
    "HANDSHAKE_FAILURE": (
        "the broker ends the TLS handshake: no cipher in common, or it asks for a certificate",
        ("its log says which", "its log says which; a certificate is named under certificate_file and key_file"),
    ),
}
# OpenSSL has called the same alerts sslv3, tlsv1 and tlsv13, and calls them ssl/tls since 3.2.
_ALERT: Final = re.compile(r"alert[ _]([a-z _]+)", re.IGNORECASE)


def told_by_alert(error: ssl.SSLError, *, by_identity: bool) -> str | None:
    """Return why the broker refuses us, and the remedy; None when the error is no alert, or one about something else.

    Args:
        error: of the handshake or of a later read.
        by_identity: whether the certificate is that of the gateway's identity, not one in files.
    """
    for found in _ALERT.finditer(str(error)):  # which holds the name, the words, or both
        known = _ALERTS.get(found[1].strip().replace(" ", "_").upper())
        if known is not None:
            words, remedies = known
            return f"{words}; {remedies[0] if by_identity else remedies[1]}"
    return None
