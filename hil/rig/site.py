"""What a device of the rig belongs to: a cloud, a claim for it, what it shall watch, and updates for it."""

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.wire.claimfile import CLAIM_FILE_NAME
from hil.loopback.children import RigError
from hil.rig import bundles, media, models
from hil.rig.bundles import Kind
from hil.rig.cloud import Cloud
from hil.rig.device import Device
from hil.rig.notes import place
from hil.rig.patience import patient, pause
from hil.rig.sensor import RATE_HZ, SensorFeed

GATEWAY_ID: Final = "rig-gateway"
_MODELS: Final = "/data/rig-models"
_UPDATE_SECONDS: Final = 3600.0
REGISTERS: Final = (4, 7, 11)
ASK_SECONDS: Final = 5.0
"""Between two questions to the bridge: each starts a program, beside emulated processors that need this machine's."""


@dataclass(frozen=True, slots=True)
class Told:
    """How a device stands with an update of its system, in its own words; see `gateway.wire.messages.UpdateState`."""

    phase: str
    code: str
    reason: str
    fetched_bytes: int = 0
    full_bytes: int = 0


class Site:
    """The site of one target. Its files are in a folder of its own, which is gone with it unless it was named."""

    def __init__(self, target: Any) -> None:
        """Prepare; nothing runs yet. target: of labgrid; its options say what differs between rigs."""
        config = target.env.config
        kept = place()
        self.directory = kept / "site" if kept else Path(tempfile.mkdtemp(prefix="sluice-site-"))
        self._scratch = None if kept else self.directory
        self.address: str = config.get_target_option(target.name, "host_address", "10.0.2.2")
        self.camera: str = config.get_target_option(target.name, "camera", "/dev/video0")
        self.sensor_device: str = config.get_target_option(target.name, "sensor", "/dev/ttyACM0")
        disk = Path(config.get_image_path("disk"))
        self.image, self.variant = disk.parent, "rig" if disk.stem.endswith("-rig") else "shipping"
        self.sensor = SensorFeed()
        maker = target.get_driver("PowerProtocol", activate=False)
        machine = getattr(maker, "machine", None)
        roots = machine.maker if machine is not None else config.get_target_option(target.name, "ek_roots", None)
        self._maker = Path(roots) if roots else None
        self.ek_roots = self.directory / "ek-roots" if roots else None
        self.cloud = Cloud(
            self.directory / "cloud",
            reached_as=self.address,
            ek_roots=self.ek_roots,
            pcrs=REGISTERS,
            notes=getattr(maker, "notes", None),
            listen="127.0.0.1" if self.address.startswith("10.0.2.") else "0.0.0.0",
        )
        self.update_seconds: dict[str, float] = {}
        self.update_bytes: dict[str, tuple[int, int]] = {}
        """By version, until the device told how it ended; what it fetched, and of how much."""

    @property
    def pipelines(self) -> dict[str, Any]:
        """What the device watches: the shipped model on the sensor, a very small one on the camera."""
        rule = {"name": "anomaly", "min_score": 0.5, "gone_seconds": 2.0, "hold_seconds": 0.0}
        interest = {"measure_every_seconds": 5.0}
        return {
            "temperature": {
                "source": "boiler",
                "model": "process-anomaly",
                "rules": [{**rule, "record_class": "critical"}],
                "interest": interest,
            },
            "light": {
                "source": "hall",
                "model": models.NAME,
                "rules": [{**rule, "name": "light", "labels": [models.LABEL]}],
                "interest": interest,
            },
        }

    @property
    def sources(self) -> dict[str, Any]:
        """Where it looks."""
        return {
            "boiler": {"type": "serial", "device": self.sensor_device, "rate_hz": RATE_HZ},
            "hall": {"type": "camera", "device": self.camera, "fps": 2.0, "frozen_after_seconds": 86400.0},
        }

    def open(self, device: Device) -> None:
        """Start the cloud, approve what the image boots, and bring the camera's model onto the device.

        Raises:
            RigError: a command fails.
        """
        if self.ek_roots is not None and self._maker is not None:
            self.ek_roots.mkdir(parents=True, exist_ok=True)
            for file in self._maker.glob("*cert.pem"):
                shutil.copy(file, self.ek_roots)
        if not (self.directory / "cloud" / "broker" / "mosquitto.conf").exists():
            self.cloud.prepare()
            for name, value in self.expected_states().items():
                self.cloud.approve(name, {11: value})
        self.cloud.start()
        folder = models.write_brightness(self.directory / "models")
        for file in folder.iterdir():
            device.put(file.read_bytes(), f"{_MODELS}/{models.NAME}/1.0.0/{file.name}", mode="644")
        device.run(f"chmod -R a+rX {_MODELS}")

    def expected_states(self) -> dict[str, str]:
        """Return register 11 of each slot of the image, as its manifest says: lower-case hexadecimal by name."""
        manifest = json.loads((self.image / "manifest.json").read_text())
        version = manifest["version"]
        return {f"{version}-{slot}": value for slot, value in pcr11_of(manifest, self.variant).items()}

    def claim(self, **more: Any) -> bytes:
        """Make a claim file for the device: who it becomes, whom it believes, what it watches; for one enrolment.

        more: other keys of the claim, e.g. `ssh`.
        """
        extra = self.directory / "claim-extra.yaml"
        config = {
            "sources": self.sources,
            "pipelines": self.pipelines,
            "models": {"directories": [_MODELS]},
            "log": {"format": "json"},
        }
        extra.write_text(yaml.safe_dump({"config": config, **more}, sort_keys=False))
        addresses, file = self.cloud.addresses, self.directory / CLAIM_FILE_NAME
        file.unlink(missing_ok=True)
        self.cloud.run(
            *("identity", "token", "create", GATEWAY_ID, "--replace", "--claim-file", str(file), "--with", str(extra)),
            *("--identity-url", addresses["identity"], "--broker", addresses["broker"]),
        )
        updates = {"registry": addresses["registry"], "registry_root": self.cloud.run("registry", "root")}
        return file.read_bytes() + yaml.safe_dump(updates).encode()

    def stick(self, **more: Any) -> Path:
        """Make a stick with a claim on it; returns its image."""
        return media.fat_stick(self.directory / "stick.img", {CLAIM_FILE_NAME: self.claim(**more)})

    # ---- updates -----------------------------------------------------------------------------------

    def bundle(self, kind: Kind) -> Path:
        """Return a bundle of a kind for this image, built now if there is none."""
        return bundles.bundle(kind, self.image, self.variant)

    def publish(self, bundle: Path) -> str:
        """Publish a bundle and begin its rollout; returns its version."""
        (told,) = self.cloud.ask("os", "publish", str(bundle))
        version, compatible = str(told["version"]), str(told["compatible"])
        self.expect(bundle)
        # In a fleet of one the first failure would halt the rollout. The device would get its old release back, and
        # talk of that a moment after it has told how the new one ended.
        tolerant = ("--max-failing-share", "1")
        self.cloud.run("rollout", "create", "--os", version, "--target", compatible, "--waves", "rest", *tolerant)
        return version

    def expect(self, bundle: Path) -> str:
        """Let the device in also when it has booted what is in a bundle; returns the bundle's version."""
        manifest = json.loads(bundle.with_name("manifest.json").read_text())
        version = str(manifest["version"])
        known = {each["name"] for each in self.cloud.ask("identity", "states", "list")}
        for slot, value in pcr11_of(manifest, self.variant).items():
            if f"{version}-{slot}" not in known:
                self.cloud.approve(f"{version}-{slot}", {11: value})
        return version

    def ended(self, version: str, *, seconds: float = _UPDATE_SECONDS) -> Told:
        """Wait until the device has told the bridge how it ended with a version.

        Raises:
            RigError: it does not in time; how far it was.
        """
        begin = time.monotonic()
        while True:
            asked = time.monotonic()
            told = self.told(version)
            if told is not None and told.phase in ("running", "reverted", "refused", "blocked"):
                self.update_seconds[version] = time.monotonic() - begin
                self.update_bytes[version] = (told.fetched_bytes, told.full_bytes)
                return told
            now = time.monotonic()
            if now > begin + patient(seconds):
                raise RigError(f"the update to {version} came to no end; the device says {told}\n{self.cloud.log()}")
            time.sleep(max(ASK_SECONDS, pause(now - asked)))

    def update(self) -> Told:
        """Bring the good bundle onto the device over the air, and wait until the device keeps it.

        Raises:
            RigError: it ends otherwise.
        """
        version = self.publish(self.bundle("good"))
        told = self.ended(version)
        if told.phase != "running":
            raise RigError(f"the update to {version} is {told.phase} ({told.code}: {told.reason})\n{self.cloud.log()}")
        return told

    def told(self, version: str) -> Told | None:
        """Return what the device has told the bridge of a version of its system; None if it has not."""
        for device in self.cloud.ask("fleet", "list"):
            if device["gateway"] != GATEWAY_ID:
                continue
            for update in (device["reported"] or {}).get("updates", []):
                if update.get("kind") == "os" and update["model"]["version"] == version:
                    bytes_ = update.get("fetched_bytes", 0), update.get("full_bytes", 0)
                    return Told(update["phase"], update.get("code", ""), update.get("reason", ""), *bytes_)
        return None

    def close(self) -> None:
        """End the cloud."""
        self.sensor.stop()
        self.cloud.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def pcr11_of(manifest: dict[str, Any], variant: str) -> dict[str, str]:
    """Return the expected register 11 of each slot from an image's manifest, lower-case hexadecimal.

    variant: `rig`, or `shipping`.
    """
    slots = manifest["variants"][variant]["pcr11"]
    return {slot: str(value).lower() for slot, value in slots.items()}
