"""Does one operation on a vault, to be killed in the middle of it; writes a line when it begins."""

import logging
import sys
from pathlib import Path

import structlog

from gateway.config import Vault as VaultSettings
from gateway.vault.vault import Vault

NEVER = Path("/nonexistent/appliance")
BEGINS = "begins"


def settings(root: Path, tcti: str) -> VaultSettings:
    if not tcti:
        return VaultSettings(level="software")
    return VaultSettings(
        level="tpm",
        tcti=tcti,
        timeout_seconds=20,
        policy_key_file=root / "device-policy.pem",
        policy_directory=root / "device-policy",
    )


def main() -> None:
    operation, root, tcti = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(BEGINS, flush=True)
    vault = Vault.open(
        settings(root, tcti), root / "device", now_ns=lambda: 1_800_000_000 * 10**9, appliance_marker=NEVER
    )
    match operation:
        case "init":
            vault.initialise()
        case "anew":
            vault.initialise(anew=True)
        case "rotate":
            vault.rotate()
        case "reseal":
            vault.reseal()
        case "import":
            vault.import_release(root / "plain/probe/1.0.0")
        case "check":
            vault.check()
        case "grant":
            release, wrapped = (root / "grant").read_text().split()
            vault.accept_grant(release, bytes.fromhex(wrapped))
        case _:
            raise SystemExit(f"unknown operation {operation}")


if __name__ == "__main__":
    main()
