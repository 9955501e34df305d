from gateway.telling import Channels
from gateway.values import Entry
from gateway.wire.messages import Event, Measure, PipelineStatus
from tests.simulators.samples import event, evidence, measure


class Heard:
    """A channel that remembers."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def publish_event(self, event: Event) -> None:
        self.heard.append(event)

    def publish_measure(self, measure: Measure) -> None:
        self.heard.append(measure)

    def publish_status(self, status: PipelineStatus) -> None:
        self.heard.append(status)


def test_events_and_measures_go_to_every_channel_and_pictures_to_none() -> None:
    one, other = Heard(), Heard()
    entries = [
        Entry("event", "event", event(), 1),
        Entry("measure", "measure", measure(), 1),
        Entry("bulk", "evidence", evidence(), 1),
    ]
    Channels((one, None, other)).publish(entries)
    assert one.heard == other.heard == [event(), measure()]


def test_without_channels_nobody_is_told_and_nothing_fails() -> None:
    Channels((None, None)).publish([Entry("event", "event", event(), 1)])
