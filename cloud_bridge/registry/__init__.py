"""Releases of models: checked, signed (TUF), sealed, packed as deltas, and served to the fleet."""
