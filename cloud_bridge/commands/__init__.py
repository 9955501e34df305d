"""The subcommands of `cloud-bridge`."""
