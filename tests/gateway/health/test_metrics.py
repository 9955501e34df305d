"""What is counted reaches Prometheus under the field's names."""

import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Metrics as MetricsSettings
from gateway.errors import ConfigError
from gateway.health.metrics import LATENCY_BUCKETS, Metrics
from gateway.outbox.rates import Flow
from gateway.outbox.stats import ClassStats, OutboxStats
from gateway.report import FeatureReport, HoldReport, IdentityReport, KeyReport, LinkUsageReport, VaultReport
from gateway.values import Inference
from gateway.wire.messages import Event, ModelRef, PipelineStatus, RecordClass, decode

SAMPLES = Path(__file__).parents[3] / "gateway" / "wire" / "samples"
MODEL = ModelRef(name="person-detector", version="1.2.0", digest="ab")


@dataclass
class Link:
    sent_bytes: int = 0
    sent_records: int = 0
    resent_batches: int = 0


@dataclass
class Uplink:
    partition: str = "healthy"
    classes: dict[Any, Link] = field(default_factory=dict)
    connects: int = 0
    withheld: dict[Any, int] = field(default_factory=dict)
    conflicts: dict[Any, int] = field(default_factory=dict)
    ignored_acks: int = 0
    bad_topics: int = 0
    overflows: int = 0
    publish_errors: dict[str, int] = field(default_factory=dict)
    blocked_classes: tuple[RecordClass, ...] = ()


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def inference() -> Inference:
    return Inference("dock", 1, 1, 1, MODEL, (), 1000, 100)


def status(**parts: Any) -> PipelineStatus:
    return PipelineStatus(pipeline="door", state="running", at="", **({"source_state": "streaming"} | parts))


def test_latencies_fall_into_the_fields_buckets() -> None:
    assert LATENCY_BUCKETS == (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
    metrics = Metrics()
    for seconds in (0.004, 0.02, 0.3):
        metrics.inferred("door", inference(), seconds, 0.75)
    labels = {"pipeline": "door", "model": "person-detector@1.2.0"}
    assert value(metrics, "inference_latency_seconds_count", **labels) == 3
    assert value(metrics, "inference_latency_seconds_bucket", le="0.025", **labels) == 2
    assert value(metrics, "inference_batch_utilisation", pipeline="door") == 0.75
    assert value(metrics, "inferences_total", pipeline="door") == 3


def test_captures_events_and_bytes_are_counted_by_pipeline() -> None:
    metrics = Metrics()
    metrics.captured("door", 5)
    metrics.told("door", decode((SAMPLES / "event.json").read_bytes(), Event))
    metrics.sent("door", 1000, 30)
    metrics.sent("door", 1000, 20)
    assert value(metrics, "captures_total", pipeline="door") == 5
    assert value(metrics, "events_total", pipeline="door", type="update") == 1
    assert value(metrics, "raw_bytes_total", pipeline="door") == 2000
    assert value(metrics, "sent_bytes_total", pipeline="door") == 50
    assert value(metrics, "edge_share") == pytest.approx(0.975)


def test_the_edge_share_is_between_0_and_1() -> None:
    metrics = Metrics()
    assert metrics.edge_share() == 1.0
    metrics.sent("door", 10, 500)
    assert metrics.edge_share() == 0.0


def test_drops_are_counted_once_although_totals_are_told_again_and_again() -> None:
    metrics = Metrics()
    for total in (3, 3, 5):
        metrics.observe_pipeline(status(dropped={"newer-frame": total}))
    assert value(metrics, "frames_dropped_total", pipeline="door", reason="newer-frame") == 5
    metrics.observe_pipeline(status(dropped={"newer-frame": 2}))  # the pipeline was started anew
    assert value(metrics, "frames_dropped_total", pipeline="door", reason="newer-frame") == 7


def test_source_state_and_release_are_shown() -> None:
    metrics = Metrics()
    metrics.observe_pipeline(status(source_state="lost", model=MODEL, backend="litert-cpu"))
    assert value(metrics, "source_state", pipeline="door", source_state="lost") == 1
    assert value(metrics, "source_state", pipeline="door", source_state="streaming") == 0
    info = {"name": "person-detector", "version": "1.2.0", "digest": "ab", "backend": "litert-cpu"}
    assert value(metrics, "model_version_info", pipeline="door", **info) == 1


def test_the_age_of_a_release_grows() -> None:
    metrics = Metrics()
    metrics.released("door", "2026-01-01T00:00:00Z", lambda: datetime(2026, 1, 2, tzinfo=UTC))
    assert value(metrics, "model_age_seconds", pipeline="door") == 86400
    metrics.released("other", "", lambda: datetime(2026, 1, 2, tzinfo=UTC))
    assert value(metrics, "model_age_seconds", pipeline="other") is None


def test_the_outbox_is_shown_by_class() -> None:
    metrics = Metrics()
    figures = ClassStats(7, 4096, 100, 10**6, 1, 7, 12.5, enqueued=9, acknowledged=2, evicted=1, refusing=True)
    metrics.observe_outbox(OutboxStats("e", {"event": figures}, 8192, 4096, queued_entries=3))
    assert value(metrics, "outbox_depth", **{"class": "event"}) == 7
    assert value(metrics, "outbox_bytes", **{"class": "event"}) == 4096
    assert value(metrics, "outbox_oldest_age_seconds", **{"class": "event"}) == 12.5
    assert value(metrics, "outbox_evicted_total", **{"class": "event"}) == 1
    assert value(metrics, "outbox_full_in_seconds", **{"class": "event"}) == float("inf")
    assert value(metrics, "outbox_refusing", **{"class": "event"}) == 1
    assert value(metrics, "outbox_file_bytes") == 12288
    assert value(metrics, "outbox_queued_entries") == 3
    assert value(metrics, "outbox_failed") == 0


@pytest.mark.parametrize(("partition", "number"), [("healthy", 0), ("degraded", 1), ("partitioned", 2)])
def test_the_uplink_is_shown_by_class(partition: str, number: int) -> None:
    metrics = Metrics()
    metrics.observe_uplink(Uplink(partition, {"bulk": Link(500, 5, 1)}, 2, {}, {}, 3, 4, 5, {"Quota exceeded": 6}))
    assert value(metrics, "partition_state") == number
    assert value(metrics, "uplink_bytes_total", **{"class": "bulk"}) == 500
    assert value(metrics, "uplink_resent_batches_total", **{"class": "bulk"}) == 1
    assert value(metrics, "uplink_connects_total") == 2
    assert value(metrics, "uplink_ignored_acks_total") == 3
    assert value(metrics, "uplink_dropped_messages_total", reason="bad-topic") == 4
    assert value(metrics, "uplink_dropped_messages_total", reason="overflow") == 5
    assert value(metrics, "uplink_publish_errors_total", reason="Quota exceeded") == 6
    assert value(metrics, "uplink_blocked", **{"class": "bulk"}) == 0


def test_a_class_that_waits_and_one_in_conflict_are_shown_until_it_is_over() -> None:
    metrics = Metrics()
    for conflicts, blocked in ((5, 1), (0, 0)):
        uplink = Uplink("healthy", {"bulk": Link(0, 0, 0)}, 1)
        uplink.conflicts = {"bulk": conflicts} if conflicts else {}
        uplink.blocked_classes = ("bulk",) if blocked else ()
        metrics.observe_uplink(uplink)
        assert value(metrics, "uplink_conflicts", **{"class": "bulk"}) == conflicts
        assert value(metrics, "uplink_blocked", **{"class": "bulk"}) == blocked


def test_the_link_is_shown_by_its_use() -> None:
    metrics = Metrics()
    usage = LinkUsageReport(
        metered=True,
        features={
            "records": FeatureReport(sent_bytes=700, received_bytes=30, budget_bytes=1000, left_bytes=270),
            "snapshots": FeatureReport(window_open=False),
        },
        held={"bulk": HoldReport(reason="window")},
        network_sent_bytes=900,
    )
    metrics.observe_link(usage)
    metrics.observe_link(usage)
    assert value(metrics, "sluice_link_bytes_total", feature="records", direction="out") == 700
    assert value(metrics, "sluice_link_bytes_total", feature="records", direction="in") == 30
    assert value(metrics, "sluice_link_budget_bytes", feature="records") == 1000
    assert value(metrics, "sluice_link_budget_left_bytes", feature="records") == 270
    assert value(metrics, "sluice_link_budget_bytes", feature="snapshots") is None
    assert value(metrics, "sluice_link_window_open", feature="snapshots") == 0
    assert value(metrics, "sluice_link_held", **{"class": "bulk"}) == 1
    assert value(metrics, "sluice_link_held", **{"class": "critical"}) == 0
    assert value(metrics, "sluice_link_network_bytes_total", direction="out") == 900


def test_rates_and_the_forecast_are_shown_by_class_and_direction() -> None:
    metrics = Metrics()
    draining = ClassStats(
        rows=100,
        disk_bytes=1000,
        max_rows=1000,
        max_bytes=10_000,
        lowest=1,
        highest=100,
        oldest_age_seconds=5.0,
        incoming=Flow(1.0, 10.0),
        outgoing=Flow(5.0, 50.0),
        empty_in_seconds=25.0,
    )
    metrics.observe_outbox(OutboxStats(epoch="e", classes={"event": draining}, file_bytes=0, wal_bytes=0))
    assert value(metrics, "outbox_rows_per_second", **{"class": "event", "direction": "in"}) == 1.0
    assert value(metrics, "outbox_bytes_per_second", **{"class": "event", "direction": "out"}) == 50.0
    assert value(metrics, "outbox_empty_in_seconds", **{"class": "event"}) == 25.0
    assert value(metrics, "outbox_full_in_seconds", **{"class": "event"}) == float("inf")


# ---- over HTTP -----------------------------------------------------------------------------------


def fetch(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_endpoint_serves_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.captured("door", 2)
    with metrics.serve(MetricsSettings(port=0)) as url:
        assert metrics.url == url
        code, text = fetch(url)
        families = {family.name for family in text_string_to_metric_families(text)}
    assert code == 200
    assert {"captures", "edge_share", "process_resident_memory_bytes", "partition_state"} <= families
    assert metrics.url == ""


def test_only_two_paths_are_there() -> None:
    with Metrics().serve(MetricsSettings(port=0)) as url:
        base = url.removesuffix("/metrics")
        assert fetch(base + "/healthz") == (200, "ok\n")
        assert fetch(base + "/")[0] == 404
        assert fetch(base + "/metrics/../etc")[0] == 404


def test_health_names_what_is_not_well() -> None:
    with Metrics().serve(MetricsSettings(port=0), lambda: ["pipeline-door"]) as url:
        assert fetch(url.removesuffix("/metrics") + "/healthz") == (503, "not well: pipeline-door\n")


def test_a_token_is_asked_for_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    with Metrics().serve(MetricsSettings(port=0, token_file=tmp_path / "token")) as url:
        for path in ("/metrics", "/healthz"):
            place = url.removesuffix("/metrics") + path
            assert fetch(place)[0] == 401
            assert fetch(place, Authorization="Bearer wrong")[0] == 401
            assert fetch(place, Authorization="Basic open-sesame")[0] == 401
            assert fetch(place, Authorization="Bearer open-sesame")[0] == 200


def test_off_loopback_a_token_is_needed(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"needs metrics\.token_file"),
        Metrics().serve(MetricsSettings(host="0.0.0.0", port=0)),
    ):
        pass
    (tmp_path / "token").write_text("open-sesame")
    with Metrics().serve(MetricsSettings(host="0.0.0.0", port=0, token_file=tmp_path / "token")) as url:
        assert fetch(url.replace("0.0.0.0", "127.0.0.1"))[0] == 401


def test_an_empty_token_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with (
        pytest.raises(ConfigError, match="is empty"),
        Metrics().serve(MetricsSettings(port=0, token_file=tmp_path / "token")),
    ):
        pass


def test_a_port_that_is_taken_is_told() -> None:
    with Metrics().serve(MetricsSettings(port=0)) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"), Metrics().serve(MetricsSettings(port=port)):
            pass


def test_the_vault_is_shown_with_its_level_and_what_waits_for_it() -> None:
    metrics = Metrics()
    keys = [
        KeyReport(label="pump 1.0.0", release="ab" * 32, remaining_seconds=3600.0),
        KeyReport(label="", release="cd" * 32),
    ]
    report = VaultReport(
        level="tpm",
        initialised=True,
        ready=True,
        releases=["pump 1.0.0"],
        keys=keys,
        waiting={"door": "why"},
        refusals=3,
    )
    metrics.observe_vault(report)
    assert value(metrics, "sluice_vault_level", level="tpm") == 1
    assert value(metrics, "sluice_vault_level", level="software") is None
    assert value(metrics, "sluice_vault_ready") == 1
    assert value(metrics, "sluice_vault_sealed_releases") == 1
    assert value(metrics, "sluice_vault_lease_seconds", release="pump 1.0.0") == 3600
    assert value(metrics, "sluice_vault_lease_seconds", release="cd" * 6) == float("inf")
    assert value(metrics, "sluice_vault_waiting", pipeline="door") == 1
    metrics.observe_vault(VaultReport(level="tpm", refusals=4))
    assert value(metrics, "sluice_vault_ready") == 0
    assert value(metrics, "sluice_vault_waiting", pipeline="door") is None
    assert value(metrics, "sluice_vault_refusals_total") == 4


def test_the_identity_is_shown_with_what_is_left_of_it() -> None:
    metrics = Metrics()
    metrics.observe_identity(IdentityReport(state="starting", level="tpm"))
    assert value(metrics, "sluice_identity_valid") == 0
    metrics.observe_identity(IdentityReport(state="valid", level="tpm", expires_in_seconds=1800.0, renewals=2))
    assert value(metrics, "sluice_identity_valid") == 1
    assert value(metrics, "sluice_identity_expiry_seconds") == 1800
    assert value(metrics, "sluice_identity_renewals_total") == 2
    assert value(metrics, "sluice_identity_state", state="valid") == 1
    metrics.observe_identity(
        IdentityReport(state="refused", level="tpm", expires_in_seconds=-5.0, renewals=2, refusals=1)
    )
    assert value(metrics, "sluice_identity_valid") == 0
    assert value(metrics, "sluice_identity_refusals_total") == 1
    assert value(metrics, "sluice_identity_state", state="valid") is None
