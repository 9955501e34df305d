"""Topics of the wire contract, version 1: `<root>/v1/<gateway>/<channel>/<name>`, always five levels."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from gateway.wire.errors import MalformedTopicError

VERSION: Final = "v1"
DEFAULT_ROOT: Final = "sluice"

Channel = Literal[
    "availability", "status", "event", "measure", "records", "ack", "twin", "cmd", "infer", "learn", "ota"
]
CHANNELS: Final[frozenset[str]] = frozenset(get_args(Channel))

GATEWAY_ID: Final = re.compile(r"[a-z0-9-]{1,63}")
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
ROOT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a message belongs: which gateway, which channel, which pipeline, class or operation."""

    gateway: str
    channel: Channel
    name: str


def topic_for(address: Address, root: str = DEFAULT_ROOT) -> str:
    """Build the topic of an address.

    Raises:
        MalformedTopicError: a part does not match its pattern, so the topic would not read back.
    """
    _check(ROOT, root, "root")
    _check(GATEWAY_ID, address.gateway, "gateway id")
    _check(NAME, address.name, "name")
    return f"{root}/{VERSION}/{address.gateway}/{address.channel}/{address.name}"


def address_of(topic: str | bytes, root: str = DEFAULT_ROOT) -> Address:
    """Read a topic back into its address.

    Bytes are accepted because a broker may deliver a topic that is not UTF-8 (MQTT 5 §1.5.4).

    Raises:
        MalformedTopicError: the topic is not UTF-8, not of this root or version, or has a bad part.
    """
    if isinstance(topic, bytes):
        try:
            topic = topic.decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedTopicError(f"topic is not UTF-8: {error}") from error
    parts = topic.split("/")
    if len(parts) != 5:
        raise MalformedTopicError(f"topic {topic[:120]!r} has {len(parts)} levels, expected 5")
    found_root, version, gateway, channel, name = parts
    if found_root != root or version != VERSION:
        raise MalformedTopicError(f"topic {topic[:120]!r} is not below {root}/{VERSION}/")
    if channel not in CHANNELS:
        raise MalformedTopicError(f"topic {topic[:120]!r} names an unknown channel {channel!r}")
    _check(GATEWAY_ID, gateway, "gateway id")
    _check(NAME, name, "name")
    return Address(gateway, channel, name)  # type: ignore[arg-type]  # membership in CHANNELS was checked above


def filter_for(channel: Channel, *, gateway: str = "+", name: str = "+", root: str = DEFAULT_ROOT) -> str:
    """Build a subscription filter for one channel, of one gateway or of all."""
    _check(ROOT, root, "root")
    if gateway != "+":
        _check(GATEWAY_ID, gateway, "gateway id")
    if name != "+":
        _check(NAME, name, "name")
    return f"{root}/{VERSION}/{gateway}/{channel}/{name}"


def shared_filter(group: str, topic_filter: str) -> str:
    """Turn a filter into a shared subscription (MQTT 5 §4.8.2)."""
    _check(NAME, group, "share group")
    return f"$share/{group}/{topic_filter}"


def _check(pattern: re.Pattern[str], value: str, what: str) -> None:
    if pattern.fullmatch(value) is None:
        raise MalformedTopicError(f"{what} {value[:120]!r} does not match {pattern.pattern}")
