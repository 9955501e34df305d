"""The TPM behind the vault, over ESAPI (docs/decisions/0011-tpm-interface.md).

Only `library` imports tpm2-pytss, and only when a TPM is asked for.
"""
