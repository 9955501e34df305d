"""The vault: model weights that are of no use outside this device in a known-good state.

`container` is the format of sealed weights (pure), `weights` decrypts them into memory, `keystore` says where the key
lives, `policy` what a boot state must be for the TPM to give it out (pure), `vault` puts them together.
"""
