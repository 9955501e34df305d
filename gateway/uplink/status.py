"""How the way to the cloud is, in values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.uplink.link import LinkState
from gateway.uplink.network import NetworkBytes
from gateway.wire.messages import RecordClass


class Partition(StrEnum):
    """Whether the cloud can be reached."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # connected, but nothing is acknowledged
    PARTITIONED = "partitioned"


@dataclass(frozen=True, slots=True)
class ClassStatus:
    """How a class of records is doing. Marks are of the present epoch, counts since the start."""

    sent: int
    confirmed: int
    outstanding_batches: int
    resent_batches: int
    sent_records: int
    sent_bytes: int
    unread_records: int = 0  # the bridge could not read them, and holds them as dead letters


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    """How the way to the cloud is."""

    link: LinkState
    partition: Partition
    classes: Mapping[RecordClass, ClassStatus]
    publish_errors: Mapping[str, int]  # by the reason the broker gave
    ignored_acks: int
    connects: int
    blocked: str  # why a class cannot be sent at all, in words; "" if all can
    blocked_classes: frozenset[RecordClass] = frozenset()
    withheld: Mapping[tuple[RecordClass, str], int] = field(default_factory=dict)  # rows replaced, by class and reason
    conflicts: Mapping[RecordClass, int] = field(default_factory=dict)  # numbers the bridge has for other records
    bad_topics: int = 0  # messages received without a usable topic
    overflows: int = 0  # messages received faster than they could be taken
    dropped_events: int = 0  # of those that are only shown: given up because too many waited
    dropped_measures: int = 0
    refused_messages: int = 0  # by the broker
    network: NetworkBytes = field(default_factory=NetworkBytes)  # estimated; zeros where nothing is metered
