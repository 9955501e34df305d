"""Benchmarks: each is measured against a bare baseline in the same run, and prints JSON."""
