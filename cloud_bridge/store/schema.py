"""The tables, for both databases. The views `records`, `spans` and `gaps` carry the names people know.

Records are kept in the order of receipt, so that inserting appends and retention removes from the front. Spans
outlive the records: they tell duplicates apart after retention has removed the rows. An event names the record that
carries its latest phase.

A *line* is what is equal among records that belong together: stream, kind and pipeline. One index holds the records
of each line in order of receipt, and the table `lines` says which lines there are: every filter is a choice of lines,
so that none of them reads what it does not want. `event_lines` does the same for events (gateway, pipeline, label).

In SQLite a record must cost the same in a large store as in a small one, so nothing on records is ordered by stream
through the whole store: an arrival would change full pages all over such a tree, more of them the larger it is.
`stream_runs` holds where the numbers of a stream stand in a row, one row for each arrival (see `keys`). The index of
lines is ordered by bucket first, the ids without their last 18 bits, so that what comes goes into a part of it that
never grows beyond the size of one bucket; `line_buckets` says in which buckets a line has records, and reading walks
through those. No index confirms there that a number is single: the spans say so, and a new run that overlaps its
neighbour is refused.

In PostgreSQL records are partitioned by class and by month of receipt (UTC). Which numbers are known is *not*
partitioned: `stream_spans` is the one key of all months, and it is changed behind the lock of its stream. The unique
index of each partition only confirms it.
"""

# ruff: noqa: S608  # the texts are put together from constants

from typing import Final

from cloud_bridge.store.keys import SHIFT
from gateway.wire.messages import CLASSES

FORGOTTEN: Final = "forgotten"
"""State of a gateway that an operator has taken out of the fleet, until it is heard of again."""

RARE: Final = "kind NOT IN ('event', 'measure')"
"""Kinds of which there are few among many others, as the first version of the schema indexed them."""

_VIEWS: Final = (
    """CREATE VIEW records AS
       SELECT r.id, s.gateway, s.epoch, s.class, r.seq, r.kind, r.pipeline, r.recorded_at_ns, r.received_at_ns,
              r.body, r.blob
       FROM stream_records r JOIN streams s ON s.id = r.stream""",
    """CREATE VIEW spans AS
       SELECT s.gateway, s.epoch, s.class, p.first, p.last FROM stream_spans p JOIN streams s ON s.id = p.stream""",
    """CREATE VIEW gaps AS
       SELECT s.gateway, s.epoch, s.class, g.first, g.last, g.source, g.reason, g.noted_at_ns
       FROM stream_gaps g JOIN streams s ON s.id = g.stream""",
)

_SQLITE_1: Final = (
    """CREATE TABLE streams (
         id INTEGER PRIMARY KEY,
         gateway TEXT NOT NULL, epoch TEXT NOT NULL, class TEXT NOT NULL,
         records INTEGER NOT NULL DEFAULT 0,
         deleted INTEGER NOT NULL DEFAULT 0,
         duplicates INTEGER NOT NULL DEFAULT 0,
         last_received_at_ns INTEGER NOT NULL DEFAULT 0,
         UNIQUE (gateway, epoch, class))""",
    """CREATE TABLE stream_records (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         stream INTEGER NOT NULL, seq INTEGER NOT NULL,
         kind TEXT NOT NULL, pipeline TEXT,
         recorded_at_ns INTEGER NOT NULL, received_at_ns INTEGER NOT NULL,
         body BLOB NOT NULL, blob BLOB)""",
    "CREATE UNIQUE INDEX stream_records_key ON stream_records (stream, seq)",
    "CREATE INDEX stream_records_stream ON stream_records (stream)",  # and the id, as every index of SQLite
    f"CREATE INDEX stream_records_rare ON stream_records (kind) WHERE {RARE}",
    """CREATE TABLE stream_spans (
         stream INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
         PRIMARY KEY (stream, first)) WITHOUT ROWID""",
    """CREATE TABLE stream_gaps (
         stream INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
         source TEXT NOT NULL, reason TEXT NOT NULL, noted_at_ns INTEGER NOT NULL,
         PRIMARY KEY (stream, first)) WITHOUT ROWID""",
    """CREATE TABLE gateways (
         gateway TEXT PRIMARY KEY,
         state TEXT NOT NULL DEFAULT 'unknown', at TEXT NOT NULL DEFAULT '', version TEXT NOT NULL DEFAULT '',
         seen_at_ns INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID""",
    """CREATE TABLE pipelines (
         gateway TEXT NOT NULL, pipeline TEXT NOT NULL, received_at_ns INTEGER NOT NULL, status BLOB NOT NULL,
         PRIMARY KEY (gateway, pipeline)) WITHOUT ROWID""",
    """CREATE TABLE events (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         gateway TEXT NOT NULL, event_id TEXT NOT NULL,
         pipeline TEXT NOT NULL, label TEXT NOT NULL, phase TEXT NOT NULL, revision INTEGER NOT NULL,
         captured_at_ns INTEGER NOT NULL, received_at_ns INTEGER NOT NULL, updated_at_ns INTEGER NOT NULL,
         stream INTEGER NOT NULL, seq INTEGER NOT NULL)""",
    "CREATE UNIQUE INDEX events_key ON events (gateway, event_id)",
    "CREATE INDEX events_gateway ON events (gateway)",
    """CREATE TABLE evidence (
         evidence_id TEXT NOT NULL, gateway TEXT NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL,
         content_type TEXT NOT NULL,
         PRIMARY KEY (evidence_id, gateway)) WITHOUT ROWID""",
    "CREATE INDEX evidence_record ON evidence (stream, seq)",
    """CREATE TABLE dead_letters (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         digest TEXT NOT NULL UNIQUE,
         reason TEXT NOT NULL, topic TEXT NOT NULL, detail TEXT NOT NULL,
         gateway TEXT, epoch TEXT, class TEXT, seq INTEGER,
         payload BLOB NOT NULL, payload_bytes INTEGER NOT NULL,
         count INTEGER NOT NULL, first_at_ns INTEGER NOT NULL, last_at_ns INTEGER NOT NULL)""",
    *_VIEWS,
)

_POSTGRES_1: Final = (
    """CREATE TABLE streams (
         id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
         gateway TEXT NOT NULL, epoch TEXT NOT NULL, class TEXT NOT NULL,
         records BIGINT NOT NULL DEFAULT 0,
         deleted BIGINT NOT NULL DEFAULT 0,
         duplicates BIGINT NOT NULL DEFAULT 0,
         last_received_at_ns BIGINT NOT NULL DEFAULT 0,
         UNIQUE (gateway, epoch, class)) WITH (fillfactor = 50)""",
    """CREATE TABLE stream_records (
         id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
         stream BIGINT NOT NULL, seq BIGINT NOT NULL,
         kind TEXT NOT NULL, pipeline TEXT,
         recorded_at_ns BIGINT NOT NULL, received_at_ns BIGINT NOT NULL,
         body BYTEA NOT NULL, blob BYTEA)""",
    "CREATE UNIQUE INDEX stream_records_key ON stream_records (stream, seq)",
    "CREATE INDEX stream_records_stream ON stream_records (stream, id)",
    f"CREATE INDEX stream_records_rare ON stream_records (kind, id) WHERE {RARE}",
    """CREATE TABLE stream_spans (
         stream BIGINT NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL,
         PRIMARY KEY (stream, first)) WITH (fillfactor = 50)""",
    """CREATE TABLE stream_gaps (
         stream BIGINT NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL,
         source TEXT NOT NULL, reason TEXT NOT NULL, noted_at_ns BIGINT NOT NULL,
         PRIMARY KEY (stream, first))""",
    """CREATE TABLE gateways (
         gateway TEXT PRIMARY KEY,
         state TEXT NOT NULL DEFAULT 'unknown', at TEXT NOT NULL DEFAULT '', version TEXT NOT NULL DEFAULT '',
         seen_at_ns BIGINT NOT NULL DEFAULT 0) WITH (fillfactor = 50)""",
    """CREATE TABLE pipelines (
         gateway TEXT NOT NULL, pipeline TEXT NOT NULL, received_at_ns BIGINT NOT NULL, status BYTEA NOT NULL,
         PRIMARY KEY (gateway, pipeline))""",
    """CREATE TABLE events (
         id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
         gateway TEXT NOT NULL, event_id TEXT NOT NULL,
         pipeline TEXT NOT NULL, label TEXT NOT NULL, phase TEXT NOT NULL, revision BIGINT NOT NULL,
         captured_at_ns BIGINT NOT NULL, received_at_ns BIGINT NOT NULL, updated_at_ns BIGINT NOT NULL,
         stream BIGINT NOT NULL, seq BIGINT NOT NULL)""",
    "CREATE UNIQUE INDEX events_key ON events (gateway, event_id)",
    "CREATE INDEX events_gateway ON events (gateway, id)",
    """CREATE TABLE evidence (
         evidence_id TEXT NOT NULL, gateway TEXT NOT NULL, stream BIGINT NOT NULL, seq BIGINT NOT NULL,
         content_type TEXT NOT NULL,
         PRIMARY KEY (evidence_id, gateway))""",
    "CREATE INDEX evidence_record ON evidence (stream, seq)",
    """CREATE TABLE dead_letters (
         id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
         digest TEXT NOT NULL UNIQUE,
         reason TEXT NOT NULL, topic TEXT NOT NULL, detail TEXT NOT NULL,
         gateway TEXT, epoch TEXT, class TEXT, seq BIGINT,
         payload BYTEA NOT NULL, payload_bytes BIGINT NOT NULL,
         count BIGINT NOT NULL, first_at_ns BIGINT NOT NULL, last_at_ns BIGINT NOT NULL)""",
    "CREATE SEQUENCE changes",
    *_VIEWS,
)

_ROLLUP_SUMS: Final = (
    "events", "updates", "score_count", "measures", "inferences", "findings", "dropped", "raw_bytes", "sent_bytes",
    "level_count", "latency_count",
)  # fmt: skip
_ROLLUP_FLOATS: Final = (
    "score_min", "score_sum", "score_max", "level_min", "level_sum", "level_max", "latency_min", "latency_sum",
    "latency_max",
)  # fmt: skip

ROLLUP_KEY: Final = ("gateway", "grain", "pipeline", "label", "start_s")
ROLLUP_SUMS: Final = (*_ROLLUP_SUMS, *(name for name in _ROLLUP_FLOATS if name.endswith("_sum")))
ROLLUP_LOWEST: Final = tuple(name for name in _ROLLUP_FLOATS if name.endswith("_min"))
ROLLUP_HIGHEST: Final = tuple(name for name in _ROLLUP_FLOATS if name.endswith("_max"))


def _new_tables(integer: str, real: str, key: str, end: str) -> tuple[str, ...]:
    """Return what version 2 adds to both; `end` closes a table that is kept in the order of its key."""
    sums = ", ".join(f"{name} {integer} NOT NULL DEFAULT 0" for name in _ROLLUP_SUMS)
    floats = ", ".join(f"{name} {real}" for name in _ROLLUP_FLOATS)
    return (
        f"ALTER TABLE streams ADD COLUMN marked_at_ns {integer} NOT NULL DEFAULT 0",
        f"""CREATE TABLE lines (
              stream {integer} NOT NULL, kind TEXT NOT NULL, pipeline TEXT NOT NULL,
              PRIMARY KEY (stream, kind, pipeline)){end}""",
        f"""CREATE TABLE event_lines (
              gateway TEXT NOT NULL, pipeline TEXT NOT NULL, label TEXT NOT NULL,
              PRIMARY KEY (gateway, pipeline, label)){end}""",
        "INSERT INTO lines SELECT DISTINCT stream, kind, coalesce(pipeline, '') FROM stream_records",
        "INSERT INTO event_lines SELECT DISTINCT gateway, pipeline, label FROM events",
        "DROP INDEX events_gateway",
        "CREATE INDEX events_updated ON events (updated_at_ns)",
        "CREATE INDEX stream_gaps_noted ON stream_gaps (noted_at_ns, stream, first)",
        "CREATE INDEX dead_letters_last ON dead_letters (last_at_ns, id)",
        f"""CREATE TABLE rollups (
              gateway TEXT NOT NULL, grain {integer} NOT NULL, pipeline TEXT NOT NULL, label TEXT NOT NULL,
              start_s {integer} NOT NULL, {sums}, {floats},
              PRIMARY KEY (gateway, grain, pipeline, label, start_s)){end}""",
        "CREATE INDEX rollups_start ON rollups (grain, start_s)",
        f"CREATE TABLE rollup_state (one {integer} PRIMARY KEY CHECK (one = 1), through_id {integer} NOT NULL)",
        "INSERT INTO rollup_state VALUES (1, 0)",
        # Stores that devices have put aside: what was in them and how far it went may not be known.
        f"""CREATE TABLE lost_stores (
              id {key},
              gateway TEXT NOT NULL, epoch TEXT NOT NULL, detail TEXT NOT NULL, noted_at_ns {integer} NOT NULL,
              UNIQUE (gateway, epoch))""",
    )


_SQLITE_2: Final = (
    *_new_tables("INTEGER", "REAL", "INTEGER PRIMARY KEY", " WITHOUT ROWID"),
    "CREATE INDEX stream_records_line ON stream_records (stream, kind, pipeline)",
    "DROP INDEX stream_records_stream",
    "DROP INDEX stream_records_rare",
    "CREATE INDEX events_line ON events (gateway, pipeline, label)",
)

_POSTGRES_2: Final = (
    *_new_tables("BIGINT", "DOUBLE PRECISION", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", ""),
    "CREATE INDEX events_line ON events (gateway, pipeline, label, id)",
    # What is there stays where it is, as one more partition: nothing is copied, however large it is.
    "DROP VIEW records",
    "ALTER TABLE stream_records RENAME TO stream_records_legacy",
    "ALTER TABLE stream_records_legacy ALTER id DROP IDENTITY",
    "ALTER TABLE stream_records_legacy DROP CONSTRAINT stream_records_pkey",
    "ALTER INDEX stream_records_key RENAME TO stream_records_legacy_key",
    "DROP INDEX stream_records_stream",
    "DROP INDEX stream_records_rare",
    "CREATE UNIQUE INDEX stream_records_legacy_id ON stream_records_legacy (id)",
    "CREATE INDEX stream_records_legacy_line ON stream_records_legacy (stream, kind, pipeline, id)",
    "ALTER TABLE stream_records_legacy ADD COLUMN class SMALLINT NOT NULL DEFAULT -1",
    "ALTER TABLE stream_records_legacy ADD COLUMN month INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE stream_records_legacy ADD CONSTRAINT stream_records_legacy_only CHECK (class = -1)",
    "CREATE SEQUENCE record_ids",
    "SELECT setval('record_ids', coalesce((SELECT max(id) FROM stream_records_legacy), 0) + 1, false)",
    """CREATE TABLE stream_records (
         id BIGINT NOT NULL DEFAULT nextval('record_ids'),
         stream BIGINT NOT NULL, seq BIGINT NOT NULL,
         kind TEXT NOT NULL, pipeline TEXT,
         recorded_at_ns BIGINT NOT NULL, received_at_ns BIGINT NOT NULL,
         body BYTEA NOT NULL, blob BYTEA,
         class SMALLINT NOT NULL, month INTEGER NOT NULL) PARTITION BY LIST (class)""",
    *(
        f"CREATE TABLE stream_records_{name} PARTITION OF stream_records FOR VALUES IN ({at}) PARTITION BY LIST (month)"
        for at, name in enumerate(CLASSES)
    ),
    "ALTER TABLE stream_records ATTACH PARTITION stream_records_legacy FOR VALUES IN (-1)",
    _VIEWS[0],
)

_SQLITE_3: Final = (
    """CREATE TABLE stream_runs (
         stream INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, first_id INTEGER NOT NULL,
         PRIMARY KEY (stream, first)) WITHOUT ROWID""",
    # Numbers are in a row where they and their ids go up by one together.
    """INSERT INTO stream_runs (stream, first, last, first_id)
       SELECT stream, min(seq), max(seq), min(id) FROM (
         SELECT stream, seq, id, seq - row_number() OVER (PARTITION BY stream, id - seq ORDER BY seq) AS island
         FROM stream_records)
       GROUP BY stream, id - seq, island""",
    """CREATE TABLE line_buckets (
         stream INTEGER NOT NULL, kind TEXT NOT NULL, pipeline TEXT NOT NULL, bucket INTEGER NOT NULL,
         PRIMARY KEY (stream, kind, pipeline, bucket)) WITHOUT ROWID""",
    f"""INSERT INTO line_buckets (stream, kind, pipeline, bucket)
       SELECT DISTINCT stream, kind, coalesce(pipeline, ''), id >> {SHIFT} FROM stream_records""",
    # What is understood later, or takes the place of its stand-in, is of another line from then on.
    f"""CREATE TRIGGER stream_records_lined AFTER UPDATE OF kind, pipeline ON stream_records BEGIN
         INSERT OR IGNORE INTO line_buckets
           VALUES (new.stream, new.kind, coalesce(new.pipeline, ''), new.id >> {SHIFT});
       END""",
    "DROP INDEX stream_records_key",
    "DROP INDEX stream_records_line",
    f"CREATE INDEX stream_records_line ON stream_records (id >> {SHIFT}, stream, kind, pipeline)",
)

# Ids are ordered by age: seconds since 1970 in ten hexadecimal digits, then what makes them unique.
_SQLITE_4: Final = (
    "CREATE TABLE store_identity (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
    """INSERT INTO store_identity
         SELECT 1, printf('%010x-%s', CAST(strftime('%s', 'now') AS INTEGER), lower(hex(randomblob(8))))""",
)

_POSTGRES_3: Final = (
    "CREATE TABLE store_identity (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
    """INSERT INTO store_identity
         SELECT 1, lpad(to_hex(extract(epoch FROM now())::bigint), 10, '0')
           || '-' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16)""",
)


def _believed_time(integer: str) -> tuple[str, ...]:
    """Return the table of the time that retention goes by; see `cloud_bridge.believing`."""
    return (
        f"""CREATE TABLE believed_time (
              one INTEGER PRIMARY KEY CHECK (one = 1), at_ns {integer} NOT NULL, doubted_since_ns {integer})""",
    )


_DOUBTED: Final = (
    "ALTER TABLE believed_time ADD COLUMN doubted_ns BIGINT",
    "ALTER TABLE believed_time ADD COLUMN stepped BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE believed_time ADD COLUMN steps TEXT NOT NULL DEFAULT '[]'",
)
"""What the clock says that is in doubt, and how it was set (JSON); in SQLite the word BIGINT makes an INTEGER."""

SQLITE: Final[tuple[tuple[str, ...], ...]] = (
    *(_SQLITE_1, _SQLITE_2, _SQLITE_3, _SQLITE_4),
    *(_believed_time("INTEGER"), _DOUBTED),
)
"""Statements of each version of the schema, the first one first; never changed once released."""

POSTGRES: Final[tuple[tuple[str, ...], ...]] = (
    *(_POSTGRES_1, _POSTGRES_2, _POSTGRES_3),
    *(_believed_time("BIGINT"), _DOUBTED),
)
"""The same for PostgreSQL."""
