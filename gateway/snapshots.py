"""What the gateway says about itself: the status, the metrics, the figures of a run that has ended."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.health.metrics import Metrics
from gateway.metering.meter import Meter
from gateway.metering.telling import report_of
from gateway.outbox.rates import TIME_CONSTANT_SECONDS
from gateway.outbox.stats import OutboxStats
from gateway.pipeline import Pipeline
from gateway.recorder import Recorder
from gateway.report import ClassReport, GatewayStatus, LastRun, LinkReport, LinkUsageReport, OutboxReport
from gateway.sealing import KeyWatch, VaultView
from gateway.uplink.announce import Announcer, AnnouncerStatus
from gateway.uplink.link import LinkState
from gateway.uplink.network import NetworkBytes
from gateway.uplink.status import UplinkStatus
from gateway.uplink.uplink import Uplink
from gateway.wire.messages import encode
from gateway.wire.times import rfc3339

if TYPE_CHECKING:
    from gateway.enrolment import Enrolment

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What there is to tell about. `components` holds those that fail, with why; it is read each time."""

    gateway: str
    version: str
    time_zone: str
    started_ns: int  # monotonic
    pipelines: Mapping[str, Pipeline]
    recorder: Recorder
    uplink: Uplink | None
    announcer: Announcer | None
    meter: Meter
    vault: VaultView
    keys: KeyWatch
    enrolment: "Enrolment | None"
    metrics: Metrics
    components: Mapping[str, str]


class Snapshots:
    """Gathers from all parts. Belongs to the event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def observe(self) -> None:
        """Bring the metrics up to date."""
        parts = self._parts
        parts.metrics.observe_outbox(parts.recorder.stats())
        if parts.uplink is not None:
            parts.metrics.observe_uplink(parts.uplink.status())
            parts.metrics.observe_link(self._link_usage())
            parts.meter.tell()
        parts.metrics.observe_vault(parts.vault.report())
        if parts.enrolment is not None:
            parts.metrics.observe_identity(parts.enrolment.report())
        for pipeline in parts.pipelines.values():
            parts.metrics.observe_pipeline(pipeline.status())

    def status(self) -> GatewayStatus:
        """Tell how everything is."""
        parts = self._parts
        cloud = parts.uplink.status() if parts.uplink is not None else None
        local = parts.announcer.status() if parts.announcer is not None else None
        return GatewayStatus(
            gateway=parts.gateway,
            version=parts.version,
            at=rfc3339(time.time_ns()),
            uptime_seconds=self._ran_seconds(),
            pid=os.getpid(),
            pipelines=[pipeline.status() for pipeline in parts.pipelines.values()],
            outbox=outbox_report(parts.recorder.stats(), cloud),
            cloud=_cloud_report(cloud) if cloud else None,
            local=_local_report(local) if local else None,
            link_usage=self._link_usage() if cloud else None,
            vault=parts.vault.report(),
            identity=parts.enrolment.report() if parts.enrolment is not None else None,
            time_zone=parts.time_zone,
            partition=cloud.partition.value if cloud else "",
            metrics_url=parts.metrics.url,
            components={f"pipeline-{name}": why for name, why in parts.keys.waiting.items()} | dict(parts.components),
        )

    def write_last_run(self, file: Path, *, drained: bool) -> None:
        """Write down what this run has done. A full disk is told, and no reason to end like a crash."""
        parts = self._parts
        report = LastRun(
            gateway=parts.gateway,
            version=parts.version,
            stopped_at=rfc3339(time.time_ns()),
            ran_seconds=self._ran_seconds(),
            drained=drained,
            pipelines={name: pipeline.totals() for name, pipeline in parts.pipelines.items()},
        )
        temporary = file.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.format(encode(report)))
            temporary.replace(file)
        except OSError as error:
            log.warning("last_run_not_written", file=str(file), error=error.strerror or str(error))

    def _ran_seconds(self) -> float:
        return round((time.monotonic_ns() - self._parts.started_ns) / 1e9, 1)

    def _link_usage(self) -> LinkUsageReport:
        parts = self._parts
        network = parts.uplink.status().network if parts.uplink is not None else NetworkBytes()
        return report_of(parts.meter.usage(), network.sent, network.received)


def outbox_report(stats: OutboxStats, uplink: UplinkStatus | None) -> OutboxReport:
    """Say how the outbox is, and what of it was sent."""
    sent = uplink.classes if uplink is not None else {}
    return OutboxReport(
        state="failed" if stats.failed else "open",
        reason=stats.failure,
        disk_full=stats.disk_full,
        queued_entries=stats.queued_entries,
        rate_over_seconds=TIME_CONSTANT_SECONDS,
        ignored_acks=stats.ignored_acks + (uplink.ignored_acks if uplink is not None else 0),
        epoch=stats.epoch,
        classes={
            name: ClassReport(
                depth=figures.rows,
                size_bytes=figures.disk_bytes,
                oldest_age_seconds=figures.oldest_age_seconds,
                full_in_seconds=figures.full_in_seconds,
                empty_in_seconds=figures.empty_in_seconds,
                incoming_rows_per_second=figures.incoming.rows_per_second,
                incoming_bytes_per_second=figures.incoming.bytes_per_second,
                outgoing_rows_per_second=figures.outgoing.rows_per_second,
                outgoing_bytes_per_second=figures.outgoing.bytes_per_second,
                refusing=figures.refusing,
                evicted=figures.evicted,
                sent_bytes=sent[name].sent_bytes if name in sent else 0,
                resent_batches=sent[name].resent_batches if name in sent else 0,
            )
            for name, figures in stats.classes.items()
        },
    )


def link_report(state: LinkState) -> LinkReport:
    """Say how a connection is."""
    return LinkReport(state=state.state, broker=state.broker, reason=state.reason)


def _cloud_report(status: UplinkStatus) -> LinkReport:
    """Say how the way to the cloud is; what a class waits for stands where nothing worse is told."""
    dropped = {f"withheld-{reason}": 0 for _, reason in status.withheld}
    for (_, reason), count in status.withheld.items():
        dropped[f"withheld-{reason}"] += count
    dropped |= {
        "conflicts": sum(status.conflicts.values()),
        "unread-by-the-bridge": sum(one.unread_records for one in status.classes.values()),
        "bad-topic": status.bad_topics,
        "overflow": status.overflows,
        "events": status.dropped_events,
        "measures": status.dropped_measures,
        "refused": status.refused_messages,
    }
    report = link_report(status.link)
    return msgspec.structs.replace(
        report, reason=report.reason or status.blocked, dropped={k: n for k, n in dropped.items() if n}
    )


def _local_report(status: AnnouncerStatus) -> LinkReport:
    dropped = {
        "events": status.dropped_events,
        "measures": status.dropped_measures,
        "refused": status.refused_messages,
        "bad-topic": status.bad_topics,
    }
    return msgspec.structs.replace(link_report(status.link), dropped={k: n for k, n in dropped.items() if n})
