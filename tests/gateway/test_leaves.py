"""What waits for a leaf sensor's source, and who answers for it."""

import pytest

from gateway.leaves import MAX_WAITING, Hold, Leaves, OnArrival, Place
from gateway.values import Done, Held


class Site:
    """A local broker that tells who is done with what."""

    def __init__(self) -> None:
        self.callbacks: list[tuple[str, OnArrival]] = []
        self.done: list[tuple[str, bytes]] = []

    def subscribe(self, topic_filter: str, _taker: str, callback: OnArrival) -> None:
        self.callbacks.append((topic_filter, callback))

    def publish(self, payload: bytes) -> None:
        def hold(taker: str) -> Done:
            return lambda: self.done.append((taker, payload))

        for _, callback in self.callbacks:
            callback("leaf/a", payload, hold)


class Source:
    """Listens at a place."""

    def __init__(self, place: Place) -> None:
        self.heard: list[bytes] = []
        self.held: list[Held] = []
        self.end = place.subscribe("leaf/+", self._hear)

    def _hear(self, _topic: str, payload: bytes, held: Held | None = None) -> None:
        assert held is not None
        self.heard.append(payload)
        self.held.append(held)


def test_a_place_is_known_to_the_broker_before_its_source_opens_and_keeps_what_comes() -> None:
    site = Site()
    place = Leaves(site.subscribe).place("boiler", "leaf/+")
    assert [topic for topic, _ in site.callbacks] == ["leaf/+"]
    site.publish(b"1")
    site.publish(b"2")
    source = Source(place)
    site.publish(b"3")
    assert source.heard == [b"1", b"2", b"3"]
    assert site.done == []
    source.held[0].done()
    source.held[0].done()
    assert site.done == [("boiler", b"1")]


def test_a_source_opened_again_takes_the_place_of_the_one_before_and_what_that_did_not_look_at() -> None:
    site = Site()
    place = Leaves(site.subscribe).place("boiler", "leaf/+")
    first = Source(place)
    site.publish(b"1")
    site.publish(b"2")
    first.end()
    first.held[1].again()
    site.publish(b"3")
    second = Source(place)
    assert (first.heard, second.heard) == ([b"1", b"2"], [b"2", b"3"])
    assert len(site.callbacks) == 1


def test_a_new_run_of_the_pipeline_gets_all_that_the_one_before_had_in_hand() -> None:
    site = Site()
    place = Leaves(site.subscribe).place("boiler", "leaf/+")
    first = Source(place)
    for payload in (b"1", b"2", b"3"):
        site.publish(payload)
    first.held[1].done()
    first.end()
    place.renew()
    assert Source(place).heard == [b"1", b"3"]


def test_two_pipelines_on_one_topic_each_answer_for_themselves() -> None:
    site = Site()
    leaves = Leaves(site.subscribe)
    sources = [Source(leaves.place(name, "leaf/+")) for name in ("a", "b")]
    site.publish(b"1")
    sources[1].held[0].done()
    assert [source.heard for source in sources] == [[b"1"], [b"1"]]
    assert site.done == [("b", b"1")]


def test_what_waits_is_bounded() -> None:
    site = Site()
    held: list[str] = []

    def hold(taker: str) -> Done:
        held.append(taker)
        return lambda: None

    place = Leaves(site.subscribe).place("boiler", "leaf/+")
    give: Hold = hold
    for _ in range(MAX_WAITING + 5):
        place.arrived("leaf/a", b"1", give)
    assert len(held) == MAX_WAITING
    assert len(Source(place).heard) == MAX_WAITING


def test_a_place_is_for_one_topic() -> None:
    place = Leaves(Site().subscribe).place("boiler", "leaf/+")
    with pytest.raises(ValueError, match=r"boiler is for leaf/\+, not for other"):
        place.subscribe("other", lambda *_: None)
