"""Reads the configuration file, and tells every mistake in it with its place and remedy."""

from gateway.configload.loading import InvalidConfigError, Reading, check, load, read
from gateway.configload.problems import Problem
from gateway.configload.reference import reference, schema

__all__ = ["InvalidConfigError", "Problem", "Reading", "check", "load", "read", "reference", "schema"]
