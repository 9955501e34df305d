"""Leaf sensors share one subscription for each topic."""

from collections.abc import Callable

from gateway.leaves import Leaves

Listener = Callable[[str, bytes], None]


def test_a_source_opened_again_replaces_its_old_listener() -> None:
    broker: dict[str, list[Listener]] = {}
    leaves = Leaves(lambda topic, callback: broker.setdefault(topic, []).append(callback))
    first: list[bytes] = []
    second: list[bytes] = []
    end = leaves.subscribe("leaf/+", lambda _, payload: first.append(payload))
    end()
    leaves.subscribe("leaf/+", lambda _, payload: second.append(payload))
    (listener,) = broker["leaf/+"]
    listener("leaf/a", b"1")
    assert (first, second) == ([], [b"1"])


def test_two_sources_on_one_topic_both_hear() -> None:
    broker: dict[str, Listener] = {}
    leaves = Leaves(broker.__setitem__)
    heard: list[str] = []
    leaves.subscribe("leaf", lambda _topic, _payload: heard.append("a"))
    leaves.subscribe("leaf", lambda _topic, _payload: heard.append("b"))
    broker["leaf"]("leaf", b"")
    assert heard == ["a", "b"]
