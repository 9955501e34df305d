"""The device's identity: attests itself to the bridge and holds a certificate that is worth an hour.

Enrolment, renewal and key release are HTTPS requests to the bridge's identity listener (`gateway.wire.identity`).
The private key of the certificate is made anew for each renewal and is never written down; what proves the device is
the attestation key of its vault.
"""
