"""Tests of the appliance on a rig, virtual or real. They ask for roles and features, never for brands."""
