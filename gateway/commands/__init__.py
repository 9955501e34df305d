"""The subcommands of `gateway`, a module each."""
