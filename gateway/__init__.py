"""The device half of Sluice: sources, inference, decisions, and a store-and-forward uplink."""
