"""What a secured site has besides its programs: TPM, approved boot states, authorities, claims, a broker with mTLS.

Everything is done with the commands that an operator and a build server use, on files below one directory:

    build/    the build server: the policy key, and what it has approved (`policy/`)
    tpm/      the state of swtpm
    maker/    the authority of the TPM's maker, for its endorsement certificate
    broker/   configuration, certificates and queue of the broker for the cloud
    bridge/identity/   authorities and devices
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hil.loopback.children import RigError, free_port
from hil.loopback.tpm import AUTHORITY_FILES, SoftwareTpm

Level = Literal["software", "tpm"]
Security = Literal["none", "software", "tpm"]

TRUST_DOMAIN: Final = "sluice.test"
REGISTERS: Final = (4, 7, 11)
"""Boot loader, secure boot, kernel image: as `identity.pcrs` of the bridge has it."""
BOOT_STATE: Final = "loopback-image-1"
_COMMAND_SECONDS: Final = 60.0


def measurements(image: str = BOOT_STATE) -> dict[int, bytes]:
    """Return what firmware and boot loader would measure of an image: one digest for each register."""
    return {number: hashlib.sha256(f"{image}: {number}".encode()).digest() for number in REGISTERS}


@dataclass
class SecuredPorts:
    """Where a secured site listens besides; taken anew for each rig."""

    local: int = field(default_factory=free_port)  # the broker for people and programs on the site
    services: int = field(default_factory=free_port)  # the cloud's broker, for the bridge
    identity: int = field(default_factory=free_port)


class SecuredSite:
    """Prepares what lies between the programs of a rig. Its TPM lives as long as the rig."""

    def __init__(self, directory: Path, gateway: str, level: Level, *, persistence: bool = True) -> None:
        """Prepare; no command is run yet. persistence: whether the cloud's broker writes down what it queues.

        Raises:
            RigError: swtpm is not installed.
        """
        self.level: Final[Level] = level
        self.ports = SecuredPorts()
        self.gateway = gateway
        self._persistence = persistence
        self.policies = directory / "build" / "policy"
        self.policy_key = directory / "build" / "policy-key"
        self.broker = directory / "broker"
        self.broker_pid = self.broker / "pid"
        self.claim = directory / "gateway" / "claim"
        self.gateway_file = directory / "gateway.yaml"
        self.bridge_file = directory / "bridge.yaml"
        self.maker = directory / "maker"
        self.ek_roots = directory / "ek-roots"
        self.measured = measurements()
        self.tpm = SoftwareTpm(directory / "tpm", directory / "log" / "tpm.log") if level == "tpm" else None
        for folder in (self.policies, self.broker, self.ek_roots):
            folder.mkdir(parents=True, exist_ok=True)

    # ---- configuration -----------------------------------------------------------------------------

    def gateway_settings(self, device_port: int) -> dict[str, Any]:
        """Return what the gateway's configuration says besides; device_port: of the cloud's broker."""
        vault: dict[str, Any] = {"level": self.level}
        if self.tpm is not None:
            vault |= {
                "tcti": self.tpm.tcti,
                "policy_key_file": str(self.policy_key) + ".pub",
                "policy_directory": str(self.policies),
                "pcrs": list(REGISTERS),
            }
        return {
            "vault": vault,
            "identity": {"url": f"https://127.0.0.1:{self.ports.identity}", "claim_file": str(self.claim)},
            "cloud": {"brokers": [{"url": f"mqtts://127.0.0.1:{device_port}", "identity": True}]},
            "local": {"broker": {"url": f"mqtt://127.0.0.1:{self.ports.local}"}},
        }

    def bridge_settings(self) -> dict[str, Any]:
        """Return what the bridge's configuration says besides."""
        return {
            "brokers": [
                {
                    "url": f"mqtts://127.0.0.1:{self.ports.services}",
                    "ca_file": str(self.broker / "services-ca.pem"),
                    "certificate_file": str(self.broker / "bridge.pem"),
                    "key_file": str(self.broker / "bridge-key.pem"),
                }
            ],
            "identity": {
                "trust_domain": TRUST_DOMAIN,
                "directory": str(self.bridge_file.parent / "bridge" / "identity"),
                "port": self.ports.identity,
                "pcrs": list(REGISTERS),
                "allow_software": self.level == "software",
                "ek_roots": None if self.level == "software" else str(self.ek_roots),
                "broker_directory": str(self.broker),
                "broker_pid_file": str(self.broker_pid),
            },
        }

    @property
    def broker_environment(self) -> dict[str, str]:
        """What the environment of the broker must say: without it, TLS sessions could be resumed."""
        return {"OPENSSL_CONF": str(self.broker / "openssl.cnf")}

    # ---- before the programs start -----------------------------------------------------------------

    def prepare(self, device_port: int, progress: Callable[[str], None] = lambda _: None) -> None:
        """Do what is done before a device is switched on for the first time.

        Raises:
            RigError: a command fails, or a program is not installed.
        """
        with ThreadPoolExecutor(2, "prepare") as both:
            cloud = both.submit(self._prepare_cloud, device_port)
            # Here, not on a thread of the pool: a child dies with the thread that has made it.
            self.boot()
            both.submit(self._prepare_device).result()
            cloud.result()
        if self.tpm is not None:
            progress(f"TPM: swtpm, a TPM in software, with an endorsement certificate, at {self.tpm.tcti}")
            progress(f"build server: boot state {BOOT_STATE} approved, with a demo key that was made for this run")
            progress("gateway: vault key sealed in the TPM, for approved boot states only")
            self.approve(BOOT_STATE, self.policies / f"{BOOT_STATE}.policy.json")
        progress(f"operator: authorities and broker configuration made, {self.gateway} may enrol once")

    def boot(self) -> None:
        """Switch the TPM on, which is made the first time, and measure what boots."""
        if self.tpm is not None:
            if not self.tpm.is_manufactured:
                self.tpm.manufacture(self.maker)
                for name in AUTHORITY_FILES:
                    shutil.copy(self.maker / name, self.ek_roots)
            self.tpm.start()
            self.tpm.measure(self.measured)

    def approve_image(self, image: str, *, counter_at_most: int) -> Path:
        """Approve an image as the build server does, without any TPM; returns the signed policy."""
        folded = {
            number: hashlib.sha256(bytes(32) + digest).hexdigest() for number, digest in measurements(image).items()
        }
        registers = [word for number, value in folded.items() for word in ("--pcr", f"{number}={value}")]
        self.sign(image, *registers, "--counter-at-most", str(counter_at_most))
        return self.policies / f"{image}.policy.json"

    def sign(self, name: str, *words: str) -> None:
        """Sign a policy as the build server does: `gateway vault policy sign`."""
        self.on_device(
            *("vault", "policy", "sign", "--key", str(self.policy_key), "--out", str(self.policies), "--name", name),
            *words,
        )

    def approve(self, name: str, policy: Path) -> None:
        """Let devices in that have booted what a signed policy approves: `cloud-bridge identity states add`."""
        values = self.policy_key.with_name(f"{name}.pcrs.json")
        values.write_text(json.dumps({"pcrs": json.loads(policy.read_text())["approval"]["pcrs"]}))
        self.in_cloud("identity", "states", "add", name, str(values))

    def on_device(self, *words: str) -> str:
        """Run a command of the gateway; returns its output."""
        return _run("gateway", *words, "--config", str(self.gateway_file))

    def in_cloud(self, *words: str) -> str:
        """Run a command of the bridge; returns its output."""
        return _run("cloud_bridge", *words, "--config", str(self.bridge_file))

    def claim_code(self, *words: str) -> str:
        """Make a claim code for the gateway; `--replace` lets a revoked one or another TPM take the name."""
        answer = self.in_cloud("identity", "token", "create", self.gateway, "--json", *words)
        return str(json.loads(answer)["code"])

    def _prepare_device(self) -> None:
        if self.level != "tpm":
            return
        _run("gateway", "vault", "policy", "keygen", str(self.policy_key))
        self.sign("first", "--first")
        self.approve_image(BOOT_STATE, counter_at_most=1)
        self.on_device("vault", "init")

    def _prepare_cloud(self, device_port: int) -> None:
        self.in_cloud(
            *("broker-config", "--out", str(self.broker), "--state-directory", str(self.broker)),
            *("--device-address", "127.0.0.1", "--device-port", str(device_port)),
            *("--service-port", str(self.ports.services)),
        )
        conf = self.broker / "mosquitto.conf"
        # A mosquitto that root starts becomes another user, who may not read these files.
        owner = "user root\n" if os.geteuid() == 0 else ""
        mine = f"{owner}pid_file {self.broker_pid}\nlog_dest stdout\nconnection_messages false\n"
        text = conf.read_text()
        if not self._persistence:
            text = text.replace("\npersistence true\n", "\npersistence false\n")
        conf.write_text(mine + text)
        self.leave_claim(self.claim_code())

    def leave_claim(self, code: str) -> None:
        """Write a claim code where the gateway's configuration says, for its user only."""
        self.claim.unlink(missing_ok=True)
        handle = os.open(self.claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as out:  # noqa: PTH123 - a file that never had other permissions
            out.write(code + "\n")


def _run(program: str, *words: str) -> str:
    command = [sys.executable, "-m", program, *words]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_COMMAND_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise RigError(f"`{program} {' '.join(words)}` took longer than {_COMMAND_SECONDS:.0f} s") from error
    if done.returncode:
        raise RigError(f"`{program} {' '.join(words)}` failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
