"""Where records are kept: SQLite or PostgreSQL, behind one Protocol and one suite of tests."""
