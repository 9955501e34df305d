"""tpm2-pytss and the system's TPM libraries, loaded when a TPM is asked for."""

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Final

from gateway.vault.errors import VaultConfigError

EXTRA: Final = "pip install 'sluice[tpm]'"
BUILD_PACKAGES: Final = "libtss2-dev pkg-config gcc python3-dev"


@dataclass(frozen=True, slots=True)
class TpmLibrary:
    """The parts of tpm2_pytss that are used here; it ships no types."""

    pytss: Any

    @property
    def failure(self) -> type[Exception]:
        """What every call raises; its `rc` is the response code."""
        kind: type[Exception] = self.pytss.TSS2_Exception
        return kind


@cache
def tpm_library() -> TpmLibrary:
    """Load the library, once.

    Raises:
        VaultConfigError: it, or the system library below it, is not there; the message names the package.
    """
    # tss would write a line on stderr for every negative answer, expected ones too; it reads this when it is loaded.
    os.environ.setdefault("TSS2_LOG", "all+none")
    try:
        return TpmLibrary(import_module("tpm2_pytss"))
    except ModuleNotFoundError as error:
        raise VaultConfigError(_missing(str(error.name))) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise VaultConfigError(_broken(str(error))) from error


def _missing(module: str) -> str:
    return (
        f"vault.level is tpm, and {module.partition('.')[0]} is not installed: {EXTRA}, after "
        f"apt-get install {BUILD_PACKAGES}; or choose `level: software` on a machine for development"
    )


def _broken(message: str) -> str:
    # For instance "libtss2-esys.so.0: cannot open shared object file"; FAPI's absence breaks the import as well.
    library = message.partition(":")[0].strip() if ".so" in message else ""
    package = _PACKAGES.get(library.partition(".so")[0], "libtss2-dev")
    return f"vault.level is tpm, and the TPM libraries cannot be loaded ({message}): apt-get install {package}"


_PACKAGES: Final = {
    "libtss2-esys": "libtss2-esys-3.0.2-0 (Debian 12) or libtss2-esys-3.0.2-0t64 (Debian 13)",
    "libtss2-fapi": "libtss2-fapi1 (Debian 12) or libtss2-fapi1t64 (Debian 13)",
    "libtss2-mu": "libtss2-mu0 (Debian 12) or libtss2-mu-4.0.1-0t64 (Debian 13)",
    "libtss2-rc": "libtss2-rc0 (Debian 12) or libtss2-rc0t64 (Debian 13)",
    "libtss2-tctildr": "libtss2-tctildr0 (Debian 12) or libtss2-tctildr0t64 (Debian 13)",
}
