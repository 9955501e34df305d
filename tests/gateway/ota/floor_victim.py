"""Raises the floor of a device with a TPM to a fencing token, to be killed in the middle of it.

python floor_victim.py ROOT TCTI TOKEN
"""

import logging
import sys
from pathlib import Path

import structlog

from gateway.ota.floor import open_floor
from gateway.vault.vault import Vault
from tests.gateway.vault.vault_victim import NEVER, settings


def main() -> None:
    """Do it."""
    root, tcti, token = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    vault = Vault.open(settings(root, tcti), root / "device", appliance_marker=NEVER)
    open_floor(vault, root / "device").raise_to(fencing_token=token)


if __name__ == "__main__":
    main()
