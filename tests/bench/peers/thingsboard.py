"""ThingsBoard IoT Gateway: Python, SQLite, MQTT on both sides; the nearest relative.

Its platform is not needed: what it sends to `v1/gateway/telemetry` is counted at the broker, and the one thing that it
asks the platform for (its limits) is answered as a platform without limits would.
"""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import paho.mqtt.client as mqtt

from hil.loopback.children import Child
from tests.bench.peers.arena import PLATFORM_USER
from tests.bench.peers.readings import TOPIC
from tests.bench.peers.systems import Consumer, System

REQUIREMENTS = Path(__file__).with_name("thingsboard-gateway.txt")
PLACE = Path("var/peers/thingsboard-gateway")
TELEMETRY = "v1/gateway/telemetry"
_ASK, _ANSWER = "v1/devices/me/rpc/request/", "v1/devices/me/rpc/response/"
_NO_LIMITS = {
    "maxPayloadSize": 65_536,
    "maxInflightMessages": 1000,
    "rateLimits": {"messages": "", "telemetryMessages": "", "telemetryDataPoints": ""},
    "gatewayRateLimits": {"messages": "", "telemetryMessages": "", "telemetryDataPoints": ""},
    "gateway": {"messages": "", "telemetryMessages": "", "telemetryDataPoints": ""},
}
_RUN = "from thingsboard_gateway.tb_gateway import daemon; daemon()"


class NotInstalledError(Exception):
    """The package cannot be installed here; the text says why."""


def install() -> Path:
    """Install the pinned version into an environment of its own; returns its Python.

    Raises:
        NotInstalledError: pip failed.
    """
    python = PLACE / "bin" / "python"
    stamp = PLACE / "installed.txt"
    wanted = REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python.absolute()
    shutil.rmtree(PLACE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise NotInstalledError(f"pip cannot install what {REQUIREMENTS.name} names: {done.stderr.strip()[-500:]}")
    stamp.write_text(wanted)
    return python.absolute()


class ThingsBoard(System):
    """SQLite storage, large packs without a pause between them, and a session on the local broker that waits for it."""

    name: ClassVar[str] = "thingsboard-gateway"
    title: ClassVar[str] = "thingsboard-gateway, best settings"

    @classmethod
    def version(cls) -> str:
        pinned = (line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("thingsboard-gateway=="))
        return next(pinned).split("==")[1]

    def gateway(self) -> Child:
        python = install()
        (packaged,) = PLACE.glob("lib/python*/site-packages/thingsboard_gateway/config")
        home = self.arena.folder / "thingsboard"
        (home / "logs").mkdir(parents=True)
        shutil.copytree(packaged, home / "config")
        shipped = json.loads((packaged / "tb_gateway.json").read_text())
        connector = json.loads((packaged / "mqtt.json").read_text())
        (home / "config" / "tb_gateway.json").write_text(json.dumps(self.general(shipped)))
        (home / "config" / "mqtt.json").write_text(json.dumps(self.connector(connector)))
        # It looks for its logs where it is started.
        command = ["env", "-C", str(home), f"TB_GW_CONFIG_DIR={home / 'config'}", str(python), "-c", _RUN]
        return Child("thingsboard-gateway", command, self.arena.folder / "gateway.log")

    def general(self, shipped: dict[str, Any]) -> dict[str, Any]:
        """Return `tb_gateway.json`."""
        settings = self.addressed(shipped)
        settings["thingsboard"] |= {
            "remoteConfiguration": False,
            "statistics": {"enable": False},
            "minPackSendDelayMS": 1,
            "maxPayloadSizeBytes": 65_536,
        }
        settings["storage"] = {
            "type": "sqlite",
            "data_file_path": f"{self.arena.disk.folder}/",
            "max_read_records_count": 1000,
            "writing_batch_size": 1000,
            "size_limit": 1024,
            "messages_ttl_in_days": 7,
        }
        return settings

    def connector(self, shipped: dict[str, Any]) -> dict[str, Any]:
        """Return `mqtt.json`."""
        settings = self.mapped(shipped)
        settings["broker"] |= {"cleanSession": False, "cleanStart": False, "sessionExpiryInterval": 3600}
        return settings

    def addressed(self, shipped: dict[str, Any]) -> dict[str, Any]:
        """Fill in what has no default: where the platform is, and that there is an MQTT connector."""
        shipped["thingsboard"] |= {"host": "127.0.0.1", "port": self.arena.link.port}
        shipped["thingsboard"]["security"] = {"type": "accessToken", "accessToken": PLATFORM_USER}
        shipped["connectors"] = [{"type": "mqtt", "name": "site", "configuration": "mqtt.json"}]
        return shipped

    def mapped(self, shipped: dict[str, Any]) -> dict[str, Any]:
        """Fill in the local broker, and what a reading looks like."""
        shipped["broker"] |= {"host": "127.0.0.1", "port": self.arena.local_port}
        shipped["mapping"] = [
            {
                "topicFilter": TOPIC,
                "subscriptionQos": 1,
                "converter": {
                    "type": "json",
                    "deviceInfo": {
                        "deviceNameExpressionSource": "constant",
                        "deviceNameExpression": "press",
                        "deviceProfileExpressionSource": "constant",
                        "deviceProfileExpression": "default",
                    },
                    "timeseries": [{"type": "integer", "key": "n", "value": "${n}"}],
                },
            }
        ]
        shipped["requestsMapping"] = {}
        return shipped

    def cloud(self, stack: ExitStack) -> None:
        stack.enter_context(Consumer(self.arena.cloud_port, [TELEMETRY, f"{_ASK}+"], self._take))

    def _take(self, client: mqtt.Client, message: mqtt.MQTTMessage) -> None:
        if message.topic.startswith(_ASK):
            client.publish(_ANSWER + message.topic.removeprefix(_ASK), json.dumps(_NO_LIMITS), 1)
            return
        content: dict[str, list[dict[str, Any]]] = json.loads(message.payload)
        self.arrivals.add(int(item.get("values", item)["n"]) for items in content.values() for item in items)


class ThingsBoardDefaults(ThingsBoard):
    """As its package ships it, with addresses and one mapping filled in: storage is memory."""

    name: ClassVar[str] = "thingsboard-defaults"
    title: ClassVar[str] = "thingsboard-gateway, defaults"

    def general(self, shipped: dict[str, Any]) -> dict[str, Any]:
        return self.addressed(shipped)

    def connector(self, shipped: dict[str, Any]) -> dict[str, Any]:
        return self.mapped(shipped)
