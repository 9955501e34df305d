"""A bridge that only counts: keeps the keys of the records in memory and acknowledges them, over a real broker."""

from gateway.config import Broker
from gateway.uplink.exchange import ConnectOptions, Ending, Incoming, Outgoing, Terms
from gateway.uplink.link import MqttClient
from gateway.wire.batch import unpack
from gateway.wire.messages import Ack, RecordClass, encode
from gateway.wire.topics import Address, address_of, filter_for, topic_for


class Peer:
    """Knobs: `lose_next_acks`, `silent`."""

    def __init__(self, url: str) -> None:
        self.client = MqttClient(
            [Broker(url=url)], ConnectOptions(client_id="bridge", max_incoming_bytes=8 << 20), self
        )
        self.client.subscribe(filter_for("records"), self._take)
        self.seen: dict[tuple[str, str, str], set[int]] = {}
        self.order: dict[str, list[int]] = {}
        self.marks: dict[tuple[str, str, str], int] = {}
        self.duplicates = 0
        self.batches = 0
        self.lose_next_acks = 0
        self.silent = False
        self.is_up = False

    async def run(self) -> None:
        await self.client.run()

    def link_up(self, terms: Terms) -> None:
        self.is_up = True

    def link_down(self, ending: Ending) -> None:
        self.is_up = False

    def parting(self) -> None:
        return

    def count(self, name: RecordClass) -> int:
        return sum(len(rows) for key, rows in self.seen.items() if key[2] == name)

    def _take(self, message: Incoming) -> None:
        address = address_of(message.topic)
        batch = unpack(message.payload).batch
        self.batches += 1
        stream = (address.gateway, batch.epoch, address.name)
        rows = self.seen.setdefault(stream, set())
        order = self.order.setdefault(address.name, [])
        for record in batch.records:
            if record.seq in rows:
                self.duplicates += 1
            else:
                rows.add(record.seq)
                order.append(record.seq)
        mark = max(self.marks.get(stream, 0), batch.base - 1)
        while mark + 1 in rows:
            mark += 1
        self.marks[stream] = mark
        if self.silent:
            return
        if self.lose_next_acks:
            self.lose_next_acks -= 1
            return
        ack = Ack(epoch=batch.epoch, mark=mark, at="2026-01-01T00:00:00.000Z")
        topic = topic_for(Address(address.gateway, "ack", address.name))
        publication = self.client.publish(Outgoing(topic, encode(ack), retain=True))
        publication.add_done_callback(lambda done: None if done.cancelled() else done.exception())
