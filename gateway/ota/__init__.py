"""Models over the air: what may be believed (`trust`), how it comes (`fetch`, `ways`), and how it is swapped in."""
