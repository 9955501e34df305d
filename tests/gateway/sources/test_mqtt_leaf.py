import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import MqttSource
from gateway.errors import ConfigError, SourceLostError
from gateway.sources.base import OnMessage, open_source
from gateway.sources.mqtt_leaf import HELD_MESSAGES, MAX_PAYLOAD_BYTES, QUEUE_MESSAGES, MqttLeaf, UnusableMessageError


class LocalBroker:
    """A broker that delivers what it is told to, on the caller's thread."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self._deliver: OnMessage | None = None
        self.subscribed = threading.Event()

    def subscribe(self, topic: str, on_message: OnMessage) -> Callable[[], None]:
        self.topics.append(topic)
        self._deliver = on_message
        self.subscribed.set()

        def unsubscribe() -> None:
            self.topics.remove(topic)

        return unsubscribe

    def publish(self, payload: bytes) -> None:
        assert self.subscribed.wait(5)
        assert self._deliver is not None
        self._deliver("leaf/1", payload)


def leaf(broker: LocalBroker, **configured: object) -> MqttLeaf:
    configured = {"topic": "leaf/1", "rate_hz": 1, "silent_after_seconds": 2} | configured
    return MqttLeaf("boiler", MqttSource(**configured), broker.subscribe)  # type: ignore[arg-type]


def received(payload: bytes, **configured: object) -> tuple[list[list[float]], dict[str, int]]:
    """Publish a payload, then end; return the samples and the drops."""
    broker = LocalBroker()
    source = leaf(broker, silent_after_seconds=0.05, **configured)
    samples: list[list[float]] = []
    publisher = threading.Thread(target=broker.publish, args=(payload,))
    publisher.start()
    try:
        for block in source.captures():
            samples += block.samples.tolist()
    except SourceLostError:
        publisher.join()
    return samples, source.drops


@pytest.mark.parametrize(
    ("payload", "configured", "sample"),
    [
        (b"21.5", {}, [21.5]),
        (b" -3 ", {}, [-3]),
        (b"[1, 2.5]", {"channels": 2}, [1, 2.5]),
        (b'{"t": 20, "h": 55.5, "id": "x"}', {"fields": ["h", "t"]}, [55.5, 20]),
        (b'{"AM2301": {"Temperature": 22.1}}', {"fields": ["AM2301.Temperature"]}, [pytest.approx(22.1)]),
        (b'{"a.b": 1, "a": {"b": 2}}', {"fields": ["a.b"]}, [1]),
    ],
)
def test_numbers_lists_and_fields_of_objects_are_samples(
    payload: bytes, configured: dict[str, object], sample: list[float]
) -> None:
    assert received(payload, **configured) == ([sample], {})


@pytest.mark.parametrize(
    ("payload", "configured", "reason"),
    [
        (b"warm", {}, "not_json"),
        (b"", {}, "not_json"),
        (b"\xff\xfe\x00", {}, "not_json"),
        (b"NaN", {}, "not_json"),
        (b"[" * 30_000, {}, "not_json"),
        (b"1e400", {}, "not_json"),
        (b"1e39", {}, "not_finite"),
        (b"9" * 400, {}, "not_finite"),
        (b"true", {}, "not_a_number"),
        (b"null", {}, "not_a_number"),
        (b'"21.5"', {}, "not_a_number"),
        (b"[[1]]", {}, "not_a_number"),
        (b"[1, 2]", {}, "wrong_channels"),
        (b"[]", {}, "wrong_channels"),
        (b"21.5", {"fields": ["t"]}, "not_an_object"),
        (b'{"h": 1}', {"fields": ["t"]}, "missing_field"),
        (b'{"t": "warm"}', {"fields": ["t"]}, "not_a_number"),
        (b" " * MAX_PAYLOAD_BYTES + b"1", {}, "too_large"),
    ],
)
def test_a_payload_that_cannot_be_used_is_a_counted_drop(
    payload: bytes, configured: dict[str, object], reason: str
) -> None:
    assert received(payload, **configured) == ([], {reason: 1})


@given(st.binary(max_size=60) | st.text(alphabet='[]{}":,0123456789.eE+-ntrufals ', max_size=40).map(str.encode))
def test_no_payload_is_ever_more_than_a_drop(payload: bytes) -> None:
    source = leaf(LocalBroker(), channels=2)
    try:
        sample = source.parsed(payload)
    except UnusableMessageError:
        return
    assert sample.shape == (1, 2)
    assert np.isfinite(sample).all()


def test_a_flood_is_bounded_and_counted_and_never_blocks_the_client() -> None:
    broker = LocalBroker()
    source = leaf(broker)
    captures = source.captures()
    threading.Timer(0.05, broker.publish, (b"0",)).start()
    next(captures)
    begin = time.monotonic()
    for number in range(QUEUE_MESSAGES + 500):
        broker.publish(b"%d" % number)
    assert time.monotonic() - begin < 1
    assert source.drops == {"queue_full": 500}
    assert next(captures).samples.tolist() == [[0]]
    source.close()


def test_all_that_the_broker_has_kept_for_us_is_taken_at_once_up_to_a_bound() -> None:
    broker = LocalBroker()
    source = leaf(broker)
    kept = [Kept() for _ in range(HELD_MESSAGES + 5)]
    for each in kept:
        source._arrived("leaf/1", b"1", each)
    assert source.drops == {"queue_full": 5}
    assert [each.said for each in kept[-6:]] == [[], *[["done"]] * 5]
    # The control: what no broker keeps is refused far sooner.
    source._arrived("leaf/1", b"1")
    assert source.drops == {"queue_full": 6}


def test_samples_are_stamped_when_they_arrive_not_when_they_are_read() -> None:
    broker = LocalBroker()
    source = leaf(broker)
    captures = source.captures()
    threading.Timer(0.05, broker.publish, (b"0",)).start()
    next(captures)
    broker.publish(b"1")
    arrived_ns = time.time_ns()
    threading.Event().wait(0.3)
    assert abs(next(captures).captured_at_ns - arrived_ns) < 200_000_000
    source.close()


def test_a_leaf_that_sends_only_garbage_is_lost_and_the_topic_given_back() -> None:
    broker = LocalBroker()
    source = leaf(broker, silent_after_seconds=0.3)
    stop = threading.Event()

    def garbage() -> None:
        while not stop.wait(0.02):
            broker.publish(b"garbage")

    thread = threading.Thread(target=garbage)
    thread.start()
    with pytest.raises(SourceLostError, match=r"nothing usable on topic leaf/1.*not_json.*mosquitto_sub -t 'leaf/1'"):
        next(source.captures())
    stop.set()
    thread.join()
    assert broker.topics == []


def test_without_a_local_broker_the_source_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"set `local\.broker`"):
        open_source("boiler", MqttSource(topic="leaf/1", rate_hz=1))


class Kept:
    """A message that its sender keeps."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def done(self) -> None:
        self.said.append("done")

    def again(self) -> None:
        self.said.append("again")


def heard(source: MqttLeaf, broker: LocalBroker, payloads: list[bytes]) -> tuple[list[float], list[Kept]]:
    """Hear some messages until the source is silent; return the values and what was said of each message."""
    kept = [Kept() for _ in payloads]

    def publish() -> None:
        assert broker.subscribed.wait(5)
        for payload, each in zip(payloads, kept, strict=True):
            source._arrived("leaf/1", payload, each)

    publisher = threading.Thread(target=publish)
    publisher.start()
    values: list[float] = []
    try:
        for block in source.captures():
            values += block.samples[:, 0].tolist()
            assert block.held is not None
            block.held.done()
    except SourceLostError:
        publisher.join()
    return values, kept


def test_each_block_carries_its_message_and_what_cannot_be_used_is_done() -> None:
    broker = LocalBroker()
    source = leaf(broker, silent_after_seconds=0.2)
    values, kept = heard(source, broker, [b"1", b"junk", b" " * (MAX_PAYLOAD_BYTES + 1), b"2"])
    assert values == [1.0, 2.0]
    assert [each.said for each in kept] == [["done"]] * 4


def test_what_was_not_looked_at_when_the_source_closes_goes_back() -> None:
    broker = LocalBroker()
    source = leaf(broker)
    blocks = source.captures()
    kept = [Kept(), Kept(), Kept()]

    def publish() -> None:
        assert broker.subscribed.wait(5)
        for each in kept:
            source._arrived("leaf/1", b"1", each)

    publisher = threading.Thread(target=publish)
    publisher.start()
    assert next(blocks).held is kept[0]
    publisher.join()
    source.close()
    assert list(blocks) == []
    assert [each.said for each in kept] == [[], ["again"], ["again"]]


@pytest.mark.parametrize(("sequence", "values"), [("n", [1.0, 2.0]), (None, [1.0, 1.0, 2.0])])
def test_a_reading_that_comes_again_is_dropped_where_the_leaf_numbers_them(
    sequence: str | None, values: list[float]
) -> None:
    broker = LocalBroker()
    source = leaf(broker, silent_after_seconds=0.2, fields=["v"], sequence_field=sequence)
    payloads = [b'{"n": 7, "v": 1}', b'{"n": 7, "v": 1}', b'{"n": 8, "v": 2}']
    found, kept = heard(source, broker, payloads)
    assert found == values
    assert [each.said for each in kept] == [["done"]] * 3
    assert source.drops == ({"repeated": 1} if sequence else {})
