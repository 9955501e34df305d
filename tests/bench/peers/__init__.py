"""Sluice beside what else a user would pick, in the same harness, with the same messages and the same faults."""
