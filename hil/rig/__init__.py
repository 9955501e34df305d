"""The rig: an appliance on a bench, virtual or real, brought into a state and disturbed by roles, never by brands."""
