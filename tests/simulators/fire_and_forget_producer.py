"""The negative control: a gateway that publishes with QoS 0 and deletes what it has written to the socket."""

from dataclasses import replace
from typing import Any

from gateway.uplink.client import Publication
from gateway.uplink.exchange import Outgoing
from tests.chaos import producer
from tests.simulators.careless_producer import CarelessUplink


class ForgettingUplink(CarelessUplink):
    """Believes that what has left the process will arrive."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        publish = self._client.publish

        def once(message: Outgoing) -> Publication:
            return publish(replace(message, qos=0))

        vars(self._client)["publish"] = once  # the part under test, replaced on purpose


if __name__ == "__main__":
    producer.main(ForgettingUplink)
