"""What a factory reset does to the TPM.

The storage root key is taken out: what was sealed under it is ciphertext that was erased with the disk, and the
next vault makes it anew. The counter against old images stays. It holds no secret and only signed steps move it,
while one that was removed and made again would begin above its old value, where the approvals of the present image
do not reach: the vault of the next owner could not be opened until a newer image. The counter of updates goes: what
the old owner's bridge had this device accept says nothing about the repository of the next one.
"""

from gateway.config import Vault
from gateway.errors import ConfigError
from gateway.vault.approvals import read_key_file
from gateway.vault.errors import VaultError
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.floorcounter import forget_floor_counter
from gateway.vault.tpm.objects import SRK_HANDLE
from gateway.vault.vault import open_connection


def forget_storage_root(settings: Vault) -> str:
    """Take the vault's storage root key and the counter of updates out of the TPM; returns "" or what went wrong."""

    def work(tpm: Tpm) -> None:
        if SRK_HANDLE in tpm.handles(SRK_HANDLE):
            owner = tpm.pytss.ESYS_TR.OWNER
            tpm.esys.evict_control(owner, tpm.esys.tr_from_tpmpublic(SRK_HANDLE), 0)
        if settings.policy_key_file is not None:
            forget_floor_counter(tpm, read_key_file(settings.policy_key_file))

    if settings.level != "tpm":
        return ""
    try:
        open_connection(settings).call("forgetting the storage root key", work)
    except (VaultError, ConfigError) as error:
        return str(error)
    return ""
