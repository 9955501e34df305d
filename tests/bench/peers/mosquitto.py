"""A mosquitto on the device with a bridge to the broker of the cloud: store and forward, and no other program."""

import subprocess
from contextlib import ExitStack
from typing import ClassVar

from hil.loopback.children import Child
from tests.bench.peers.arena import mosquitto, user
from tests.bench.peers.readings import TOPIC, number_of
from tests.bench.peers.systems import Consumer, System

BEST = """\
listener {local} 127.0.0.1
allow_anonymous true
user {user}
persistence true
persistence_location {folder}/
# The queue is a snapshot: this is how much of it a crash may cost. Shorter is not possible, and saving on each change
# writes the whole queue anew for each message.
autosave_interval 1
max_queued_messages 0
max_inflight_messages 1000
connection cloud
address 127.0.0.1:{link}
topic # out 1
cleansession false
restart_timeout 1
keepalive_interval 10
bridge_attempt_unsubscribe false
notifications false
"""

DEFAULTS = """\
listener {local} 127.0.0.1
allow_anonymous true
user {user}
persistence true
persistence_location {folder}/
connection cloud
address 127.0.0.1:{link}
topic # out 1
"""


class MosquittoBridge(System):
    """Everything that can be set in favour of not losing anything, and of coming back soon."""

    name: ClassVar[str] = "mosquitto-bridge"
    title: ClassVar[str] = "mosquitto bridge, best settings"
    is_local_broker: ClassVar[bool] = True
    settings: ClassVar[str] = BEST

    @classmethod
    def version(cls) -> str:
        said = subprocess.run([mosquitto(), "-h"], check=False, capture_output=True, text=True).stdout
        return said.split("\n", 1)[0].removeprefix("mosquitto version ").strip()

    def gateway(self) -> Child:
        state = self.arena.disk.folder / "mosquitto"
        state.mkdir()
        file = self.arena.folder / "gateway.conf"
        file.write_text(
            self.settings.format(local=self.arena.local_port, link=self.arena.link.port, folder=state, user=user())
        )
        return Child("mosquitto", [mosquitto(), "-c", str(file)], self.arena.folder / "gateway.log")

    def cloud(self, stack: ExitStack) -> None:
        consumer = Consumer(
            self.arena.cloud_port, [TOPIC], lambda _, message: self.arrivals.add([number_of(message.payload)])
        )
        stack.enter_context(consumer)


class MosquittoDefaults(MosquittoBridge):
    """As Debian ships it, with the three lines that make a bridge."""

    name: ClassVar[str] = "mosquitto-defaults"
    title: ClassVar[str] = "mosquitto bridge, defaults"
    settings: ClassVar[str] = DEFAULTS
