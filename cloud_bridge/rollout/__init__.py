"""Gives a release to a fleet in waves, looks at what it does there, and takes it back when it is worse."""
