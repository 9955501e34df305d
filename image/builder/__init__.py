"""Builds the appliance image. Standard library alone: it runs before there is a virtual environment."""
