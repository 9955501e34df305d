"""What anyone would write in ten lines: `python -m tests.bench.peers.bare PORT COUNT` publishes a list with QoS 1."""

import sys

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.bench.peers.readings import TOPIC, payload_of

WINDOW = 20
"""The library's own default; larger ones are slower."""


def main(port: int, count: int) -> None:
    """Publish readings 1 to `count`, as fast as the answers of the broker allow."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(WINDOW)
    client.connect("127.0.0.1", port)
    client.loop_start()
    payloads = [payload_of(number) for number in range(1, count + 1)]
    for info in [client.publish(TOPIC, payload, 1) for payload in payloads]:
        info.wait_for_publish()
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
