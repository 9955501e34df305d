"""From the broker to the store: take, decode, commit, and only then acknowledge."""
