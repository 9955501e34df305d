"""Identity of devices: enrolment, attestation, certificates for an hour, grants of content keys."""
