"""The cloud side of Sluice: takes records from a fleet of gateways, keeps each exactly once, and shows them."""
