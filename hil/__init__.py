"""Tests and demonstrations on a rig: the loopback of one machine, the virtual appliance, real boards."""
