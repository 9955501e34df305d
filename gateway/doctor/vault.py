"""Checks of the vault: would the key of the models be given out?"""

from collections.abc import Iterator

from gateway.config import Config
from gateway.doctor.diagnosis import Diagnosis
from gateway.vault.errors import VaultError
from gateway.vault.vault import Vault
from gateway.wire.plain import so_many


def check_vault(config: Config) -> Iterator[Diagnosis]:
    """Ask the vault; at level `tpm` the TPM is asked, too. Nothing is unsealed or changed."""
    if not (config.gateway.state_directory / "vault").is_dir():
        found = f"level {config.vault.level}, not initialised yet"
        yield Diagnosis("vault", "skipped", found, "the gateway does it at its first start, or `gateway vault init`")
        return
    try:
        status = Vault.open(config.vault, config.gateway.state_directory).status()
    except VaultError as error:
        yield Diagnosis("vault", "failed", str(error), "see `gateway vault status`")
        return
    for warning in status.store.warnings:
        yield Diagnosis("vault", "warning", warning, "use vault.level tpm where others can reach the machine")
    if status.problems:
        more = f" (and {len(status.problems) - 1} more)" if len(status.problems) > 1 else ""
        yield Diagnosis("vault", "failed", status.problems[0] + more, "see `gateway vault status`")
    else:
        sealed = f"{so_many(len(status.releases), 'release')} sealed"
        found = f"level {status.store.level}, generation {status.generation}, {sealed}"
        yield Diagnosis("vault", "ok", found)
