"""What the uplink asks of the meter of the link, in its own terms: classes, messages, connections."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol

from gateway.config import Broker, Feature
from gateway.uplink.exchange import Outgoing
from gateway.uplink.traffic import Direction, Tap
from gateway.wire.errors import MalformedTopicError
from gateway.wire.messages import RecordClass
from gateway.wire.topics import DEFAULT_ROOT, address_of

_TOPICS_REMEMBERED: Final = 256
_TELEMETRY: Final = frozenset({"event", "measure", "status", "availability"})


Traffic = Feature | Literal["protocol"]


class LinkMeter(Protocol):
    """What is needed of `gateway.metering.meter.Meter`; safe to call from any thread."""

    @property
    def limits(self) -> bool:
        """Whether there is any budget or window that applies to the present link."""
        ...

    def allow(self, feature: Feature, size_bytes: int, *, record_class: RecordClass | None = None) -> bool:
        """Set bytes aside for something that is about to be sent; may wait for the disk. False: it must wait."""
        ...

    def give_back(self, feature: Feature, size_bytes: int) -> None:
        """What was set aside is not sent."""
        ...

    def exhaust(self, feature: Feature, size_bytes: int) -> None:
        """So much was not allowed: have the feature wait, if the budget lacks it."""
        ...

    def held(self) -> Mapping[RecordClass, object]:
        """Return the classes that must wait."""
        ...

    def hold(self, feature: Feature, record_class: RecordClass | None = None) -> object | None:
        """Tell whether a feature must wait."""
        ...

    def room(self, feature: Feature, record_class: RecordClass | None = None) -> int | None:
        """Return what is left of a budget, in bytes; None: there is none."""
        ...

    def link(self, *, metered: bool) -> None:
        """A connection is there."""
        ...

    def link_down(self) -> None:
        """It is gone."""
        ...

    def spent(self, feature: Traffic, direction: Direction, size_bytes: int) -> None:
        """Count bytes that passed."""
        ...


def is_metered(broker: Broker, brokers: Sequence[Broker]) -> bool:
    """Tell whether budgets and windows apply to a broker of the list: if it says so, or if none says anything."""
    if broker.metered is not None:
        return broker.metered
    return not any(each.metered for each in brokers)


def feature_of(record_class: RecordClass) -> Feature:
    """Return whose budget pays for a class of records: pictures are what `bulk` holds."""
    return "snapshots" if record_class == "bulk" else "records"


class Gate:
    """Stands before everything that goes to the cloud. Without a meter it is always open and counts nothing."""

    def __init__(self, meter: LinkMeter | None, brokers: Sequence[Broker], root: str = DEFAULT_ROOT) -> None:
        self._meter = meter
        self._brokers = brokers
        self._root = root
        self._features: dict[bytes, Feature] = {}
        self._broker: Broker | None = None
        self._maximum_qos = 1

    # ---- connections -----------------------------------------------------------------------------

    def tap(self) -> Tap | None:
        """Make the listener for a new connection."""
        return Tap(self._count) if self._meter is not None else None

    def link_up(self, broker: Broker | None, maximum_qos: int) -> None:
        """A connection to a broker is there."""
        self._broker, self._maximum_qos = broker, maximum_qos
        if self._meter is not None and broker is not None:
            self._meter.link(metered=is_metered(broker, self._brokers))

    def link_down(self) -> None:
        """It is gone."""
        if self._meter is not None:
            self._meter.link_down()

    # ---- records -------------------------------------------------------------------------------------

    @property
    def asks(self) -> bool:
        """Whether `admit` must be asked before something is sent."""
        return self._meter is not None and self._meter.limits

    def held(self) -> frozenset[RecordClass]:
        """Return the classes that must wait."""
        return frozenset(self._meter.held()) if self._meter is not None and self._meter.limits else frozenset()

    def room(self, record_class: RecordClass) -> int | None:
        """Return what the next packet of a class may have, in bytes; None: no limit."""
        return self._meter.room(feature_of(record_class), record_class) if self._meter is not None else None

    def admit(self, record_class: RecordClass, message: Outgoing) -> bool:
        """Set aside what a batch will take; False: it must wait. May wait for the disk."""
        if self._meter is None:
            return True
        feature, size = feature_of(record_class), self._size(message)
        if self._meter.allow(feature, size, record_class=record_class):
            return True
        self._meter.exhaust(feature, size)
        return False

    def not_sent(self, record_class: RecordClass, message: Outgoing) -> None:
        """A batch that was admitted is not sent after all."""
        if self._meter is not None:
            self._meter.give_back(feature_of(record_class), self._size(message))

    # ---- what is shown -------------------------------------------------------------------------------

    def telemetry_waits(self) -> bool:
        """Tell whether nothing may be shown now."""
        return self._meter is not None and self._meter.limits and self._meter.hold("telemetry") is not None

    def admit_telemetry(self, message: Outgoing) -> bool:
        """As `admit`, for what is only shown."""
        if self._meter is None or not self._meter.limits:
            return True
        size = self._size(message)
        if self._meter.allow("telemetry", size):
            return True
        self._meter.exhaust("telemetry", size)
        return False

    # ---- inside --------------------------------------------------------------------------------------

    def _size(self, message: Outgoing) -> int:
        broker = self._broker
        is_v5 = broker is None or broker.protocol == "5"
        return message.exact_bytes(is_v5=is_v5, qos=min(message.qos, self._maximum_qos))

    def _count(self, topic: bytes | None, direction: Direction, size: int) -> None:
        """Called on the network thread."""
        assert self._meter is not None
        self._meter.spent("protocol" if topic is None else self._feature(topic), direction, size)

    def _feature(self, topic: bytes) -> Traffic:
        known = self._features.get(topic)
        if known is not None:
            return known
        try:
            address = address_of(topic, self._root)
        except MalformedTopicError:
            return "protocol"
        if address.channel in _TELEMETRY:
            found: Feature = "telemetry"
        elif address.channel in ("records", "ack"):
            found = "snapshots" if address.name == "bulk" else "records"
        elif address.channel == "ota":
            found = "model_downloads"
        else:
            return "protocol"
        if len(self._features) < _TOPICS_REMEMBERED:  # who may publish to us must not fill our memory
            self._features[topic] = found
        return found
