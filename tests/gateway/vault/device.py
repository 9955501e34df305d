"""A device with a vault, and the build side that approves its states."""

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.config import Vault as VaultSettings
from gateway.vault import policy
from gateway.vault.policy import PolicyKey
from gateway.vault.tpm.connection import Connection, Tpm
from gateway.vault.tpm.identity import TpmIdentity
from gateway.vault.tpm.objects import open_root, provision_root
from gateway.vault.tpm.registers import read_registers
from gateway.vault.vault import Vault
from gateway.wire.manifest import Artefact, read_manifest

Answer = TypeVar("Answer")

PCRS = (7, 11)
NEVER = Path("/nonexistent/appliance")


@dataclass
class Clock:
    """A wall clock that stands until it is set, UTC nanoseconds."""

    now_ns: int = 1_800_000_000 * 10**9

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class Device:
    """One device: its state directory, its TPM, the policies delivered to it."""

    root: Path
    tcti: str
    private: EllipticCurvePrivateKey
    name: str = "device"
    seconds: float = 5.0
    clock: Clock = field(default_factory=Clock)

    @property
    def state(self) -> Path:
        return self.root / self.name

    @property
    def policies(self) -> Path:
        return self.root / f"{self.name}-policy"

    @property
    def key(self) -> PolicyKey:
        return PolicyKey(self.private.public_key())

    @property
    def settings(self) -> VaultSettings:
        self.policies.mkdir(exist_ok=True)
        public = self.root / f"{self.name}-policy.pem"
        public.write_bytes(self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return VaultSettings(
            level="tpm",
            tcti=self.tcti,
            timeout_seconds=self.seconds,
            policy_key_file=public,
            policy_directory=self.policies,
            pcrs=PCRS,
        )

    @property
    def connection(self) -> Connection:
        return Connection(self.tcti, seconds=self.seconds)

    @property
    def identity(self) -> TpmIdentity:
        return TpmIdentity(self.connection)

    def vault(self) -> Vault:
        return Vault.open(self.settings, self.state, now_ns=self.clock, appliance_marker=NEVER)

    def with_root(self, work: Callable[[Tpm, Any], Answer]) -> Answer:
        """Do something in the TPM under its storage root key."""
        name = self.connection.call("making the root", provision_root)
        return self.connection.call("testing", lambda tpm: work(tpm, open_root(tpm, name)))

    def registers(self, numbers: Sequence[int] = PCRS) -> dict[str, str]:
        values = self.connection.call("reading", lambda tpm: read_registers(tpm, numbers))
        return {str(number): value.hex() for number, value in values.items()}

    def deliver(
        self, approval: policy.Approval, private: EllipticCurvePrivateKey | None = None
    ) -> policy.SignedApproval:
        """Sign an approval and put it where the device looks."""
        signed = policy.sign(approval, private or self.private)
        self.policies.mkdir(exist_ok=True)
        (self.policies / f"{approval.name}{policy.POLICY_SUFFIX}").write_bytes(policy.encode(signed))
        return signed

    def withdraw(self, name: str) -> None:
        (self.policies / f"{name}{policy.POLICY_SUFFIX}").unlink()

    def approve_present_state(self, name: str = "image-1", counter_at_most: int = 1) -> policy.SignedApproval:
        state = policy.BootState(name=name, pcrs=self.registers(), counter_at_most=counter_at_most)
        return self.deliver(state)

    def initialised(self) -> Vault:
        """Return a vault that is sealed under the present state."""
        self.deliver(policy.FirstCount(name="first"))
        self.approve_present_state()
        vault = self.vault()
        vault.initialise()
        return vault


def plain_release(
    root: Path, files: dict[str, bytes], name: str = "probe", version: str = "1.0.0"
) -> tuple[Path, tuple[Artefact, ...]]:
    """Write a plain release whose artefacts hold these bytes; they need not be models."""
    directory = root / name / version
    directory.mkdir(parents=True)
    for file, content in files.items():
        (directory / file).write_bytes(content)
    targets = ["cpu-int8", "cpu-int4", "cpu-float", "edgetpu"]
    document = {
        "name": name,
        "version": version,
        "summary": "a release for tests",
        "artefacts": [
            {
                "target": target,
                "file": file,
                "sha256": hashlib.sha256(content).hexdigest(),
                "size_bytes": len(content),
            }
            for target, (file, content) in zip(targets, files.items(), strict=False)
        ],
        "input": {"kind": "window", "samples": 8, "hop_samples": 8, "rate_hz": 1.0, "features": {"kind": "plain"}},
        "output": {"kind": "score", "threshold": 1.0},
    }
    (directory / "manifest.json").write_text(json.dumps(document))
    (directory / "CARD.md").write_text("# A card\n")
    return directory, read_manifest((directory / "manifest.json").read_bytes()).artefacts


def some_weights(size: int = 200_000) -> bytes:
    return secrets.token_bytes(size)
