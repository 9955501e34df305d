"""The negative control: a gateway that deletes a record when the broker has it, as most do."""

from gateway.uplink.client import Publication
from gateway.uplink.exchange import Incoming
from gateway.uplink.uplink import Uplink
from gateway.wire.messages import Ack, RecordClass, encode
from gateway.wire.topics import Address, topic_for
from tests.chaos import producer


class CarelessUplink(Uplink):
    """Takes the broker's PUBACK for the bridge's word."""

    def _answered(self, record_class: RecordClass, ticket: int, publication: Publication) -> None:
        if not publication.cancelled() and publication.exception() is None and not publication.result().failed:
            batches = self._delivery._streams[record_class].batches
            for last in [batch.last for batch in batches if batch.ticket == ticket]:
                word = encode(Ack(epoch=self._delivery.epoch, mark=last, at=""))
                topic = topic_for(Address(self._gateway_id, "ack", record_class), self._root)
                self._marks.take(Incoming(topic, word, retained=False))
        super()._answered(record_class, ticket, publication)


if __name__ == "__main__":
    producer.main(CarelessUplink)
