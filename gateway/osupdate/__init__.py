"""Updates of the system itself, through RAUC: what is installed when (`plan`), how (`agent`), and what became of it."""
