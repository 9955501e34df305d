"""Tells the site, and the cloud's broker if wished, what happens: without the outbox, for whoever listens now."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from gateway.values import Entry
from gateway.wire.messages import Event, Measure, PipelineStatus


class Channel(Protocol):
    """A broker's client. Any thread may call it."""

    def publish_event(self, event: Event) -> None: ...
    def publish_measure(self, measure: Measure) -> None: ...
    def publish_status(self, status: PipelineStatus) -> None: ...


class Channels:
    """All of them."""

    def __init__(self, channels: Iterable[Channel | None]) -> None:
        """Those that are configured; None for those that are not."""
        self._channels = [channel for channel in channels if channel is not None]

    def publish(self, entries: Sequence[Entry]) -> None:
        """Tell what has just become durable."""
        for entry in entries:
            for channel in self._channels:
                if isinstance(entry.body, Event):
                    channel.publish_event(entry.body)
                elif isinstance(entry.body, Measure):
                    channel.publish_measure(entry.body)

    def publish_status(self, statuses: Iterable[PipelineStatus]) -> None:
        """Tell how the pipelines are."""
        for status in statuses:
            for channel in self._channels:
                channel.publish_status(status)
