"""The tables, one text for both databases; see `cloud_bridge.identity.schema`."""

from typing import Final

from cloud_bridge.identity.database import Schema

_VERSION_1: Final = (
    "CREATE TABLE drift_facts (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    # Sums of measures by device, model and slice of time; `statistics` is JSON: histograms by name.
    """CREATE TABLE drift_slices (
         model TEXT NOT NULL, version TEXT NOT NULL, gateway TEXT NOT NULL, pipeline TEXT NOT NULL,
         start_s BIGINT NOT NULL, statistics TEXT NOT NULL,
         PRIMARY KEY (model, version, gateway, pipeline, start_s))""",
    "CREATE INDEX drift_slices_start ON drift_slices (start_s)",
    # What a device is held against in shape: its first window, or what a person has accepted.
    """CREATE TABLE drift_references (
         model TEXT NOT NULL, version TEXT NOT NULL, gateway TEXT NOT NULL, pipeline TEXT NOT NULL,
         at_ns BIGINT NOT NULL, origin TEXT NOT NULL, statistics TEXT NOT NULL,
         PRIMARY KEY (model, version, gateway, pipeline))""",
    # `scope` is `device` or `cohort`; `subject` is gateway/pipeline, or label=value.
    """CREATE TABLE drift_findings (
         model TEXT NOT NULL, version TEXT NOT NULL, scope TEXT NOT NULL, subject TEXT NOT NULL,
         statistic TEXT NOT NULL, basis TEXT NOT NULL, level TEXT NOT NULL, since_ns BIGINT NOT NULL,
         proposed TEXT NOT NULL, times BIGINT NOT NULL, newest BIGINT NOT NULL, looked_ns BIGINT NOT NULL,
         figures TEXT NOT NULL,
         PRIMARY KEY (model, version, scope, subject, statistic, basis))""",
    """CREATE TABLE drift_events (
         id TEXT PRIMARY KEY, at_ns BIGINT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, scope TEXT NOT NULL,
         subject TEXT NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL)""",
    "CREATE INDEX drift_events_at ON drift_events (at_ns)",
    """CREATE TABLE drift_proposals (
         id TEXT PRIMARY KEY, at_ns BIGINT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, why TEXT NOT NULL,
         state TEXT NOT NULL, changed_ns BIGINT NOT NULL, detail TEXT NOT NULL)""",
    # What people say that an event really was; retraining reads it.
    """CREATE TABLE drift_labels (
         gateway TEXT NOT NULL, event_id TEXT NOT NULL, label TEXT NOT NULL, at_ns BIGINT NOT NULL,
         PRIMARY KEY (gateway, event_id))""",
)

DRIFT: Final = Schema("drift", "drift", (_VERSION_1,), 0x51_1C_D5)
FILE_NAME: Final = "drift.db"
