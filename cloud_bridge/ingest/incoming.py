"""A message as the consumer hands it to the worker."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message from a broker. The topic is bytes when it is not UTF-8.

    `connection` counts the connections of its consumer: a packet id means something within one of them only.
    """

    topic: str | bytes
    payload: bytes
    packet_id: int
    qos: int
    connection: int
    received_ns: int  # monotonic
    retained: bool = False
