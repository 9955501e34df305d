"""Topics read back as they were built, and nothing else is read."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire.errors import MalformedTopicError
from gateway.wire.topics import (
    CHANNELS,
    GATEWAY_ID,
    NAME,
    ROOT,
    Address,
    address_of,
    filter_for,
    shared_filter,
    topic_for,
)

addresses = st.builds(
    Address,
    st.from_regex(GATEWAY_ID, fullmatch=True),
    st.sampled_from(sorted(CHANNELS)),
    st.from_regex(NAME, fullmatch=True),
)
roots = st.from_regex(ROOT, fullmatch=True)


@given(addresses, roots)
def test_an_address_reads_back_from_its_topic(address: Address, root: str) -> None:
    topic = topic_for(address, root)
    assert topic.count("/") == 4
    assert not set(topic) & set("+#$\0")
    assert address_of(topic, root) == address
    assert address_of(topic.encode(), root) == address


@given(st.text(max_size=120) | st.binary(max_size=120))
@example("sluice/v1/dock/event/door\n")
@example("sluice/v1/dock/event/+")
@example("$SYS/v1/dock/event/door")
@example(b"sluice/v1/\xff/event/door")
@example("sluice/v1/dock/event/" + "x" * 65000)
def test_any_other_topic_is_malformed_and_nothing_else(topic: str | bytes) -> None:
    try:
        address = address_of(topic)
    except MalformedTopicError:
        return
    assert topic_for(address) == (topic if isinstance(topic, str) else topic.decode())


@pytest.mark.parametrize(
    ("topic", "complaint"),
    [
        ("sluice/v1/dock/event", "4 levels"),
        ("sluice/v2/dock/event/door", "not below sluice/v1/"),
        ("other/v1/dock/event/door", "not below sluice/v1/"),
        ("sluice/v1/dock/events/door", "unknown channel"),
        ("sluice/v1/Dock/event/door", "gateway id"),
        ("sluice/v1/dock/event/", "name"),
        (b"sluice/v1/dock/event/\xc3(", "not UTF-8"),
    ],
)
def test_a_bad_topic_is_explained(topic: str | bytes, complaint: str) -> None:
    with pytest.raises(MalformedTopicError, match=complaint):
        address_of(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "\0", "ä", "door\n"])
def test_a_topic_that_would_not_read_back_is_not_built(name: str) -> None:
    with pytest.raises(MalformedTopicError):
        topic_for(Address("dock", "event", name))


def test_filters_subscribe_to_one_gateway_or_to_all() -> None:
    assert filter_for("records") == "sluice/v1/+/records/+"
    assert filter_for("ack", gateway="dock", root="plant") == "plant/v1/dock/ack/+"
    assert shared_filter("ingest", filter_for("records")) == "$share/ingest/sluice/v1/+/records/+"
    with pytest.raises(MalformedTopicError):
        filter_for("records", gateway="#")
