"""Models over the air: what may be believed (`trust`), how it is fetched (`fetch`, `ways`), and how it is swapped in."""
