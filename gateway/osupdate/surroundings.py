"""What updates of the system read of the device: which boot this is, its health, and the vault's approvals."""

from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.config import Config
from gateway.osupdate.plan import Health
from gateway.vault.policy import POLICY_SUFFIX, BootState, SignedApproval

APPLIANCE_MARKER: Final = Path("/usr/lib/sluice/appliance")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
HEALTH_FILE: Final = "health.json"
"""Below the state directory, written by `gateway appliance health`."""
HEALTH_UNTIL_REBOOT: Final = Path("/run/sluice-health") / HEALTH_FILE
"""Where that writes it when the disk takes nothing; it is not there otherwise."""
_MAX_BYTES: Final = 1 << 20


class _HealthReport(msgspec.Struct, frozen=True):
    """What is needed of the report."""

    boot_id: str = ""
    image: dict[str, Any] = {}
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    at: str = ""


def is_wanted(config: Config, marker: Path = APPLIANCE_MARKER) -> bool:
    """Tell whether this gateway updates its system."""
    return config.os.enabled == "yes" or (config.os.enabled == "auto" and marker.exists())


def boot_id(file: Path = BOOT_ID) -> str:
    """Return what names this boot; "" where the kernel does not say."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def read_health(*files: Path) -> Health | None:
    """Return the last report on health, from the first of these files that has one; None if there is none."""
    for file in files:
        try:
            with file.open("rb") as source:
                report = msgspec.json.decode(source.read(_MAX_BYTES), type=_HealthReport)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        version = str(report.image.get("version", ""))
        return Health(report.boot_id, version, report.verdict, report.reasons, report.at)
    return None


def outgrown(directory: Path, slot: str, counter: int | None) -> str:
    """Say why the image in a slot cannot open the vault any more; "" if it can, or nothing here says that it cannot.

    Args:
        directory: of approvals.
        slot: its boot name; its image's approval is `SLOT.policy.json`.
        counter: of the vault; None where there is none.
    """
    try:
        file = directory / f"{slot}{POLICY_SUFFIX}"
        approval = msgspec.json.decode(file.read_bytes(), type=SignedApproval).approval
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ""
    if counter is None or not isinstance(approval, BootState) or counter <= approval.counter_at_most:
        return ""
    return (
        f"the image in slot {slot} ({approval.name}) gets the vault's key up to counter {approval.counter_at_most}; "
        f"this device is at {counter}"
    )


def missing_approval(directory: Path, slot: str, pcr11: str) -> str:
    """Say why the vault would not give its key to the image in a slot; "" if an approval for it is there.

    By what the image measures into PCR 11 where the bundle says so, else by the name of the file, `SLOT.policy.json`.
    Signatures are the vault's to check.
    """
    if not pcr11:
        file = directory / f"{slot}{POLICY_SUFFIX}"
        return "" if file.exists() else f"{file} is not there: nothing approves the image in slot {slot}"
    try:
        files = sorted(directory.glob(f"*{POLICY_SUFFIX}"))
    except OSError as error:
        return f"{directory}: {error.strerror or error}"
    for file in files:
        try:
            approval = msgspec.json.decode(file.read_bytes(), type=SignedApproval).approval
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
        if isinstance(approval, BootState) and approval.pcrs.get("11", "").lower() == pcr11:
            return ""
    return f"no approval in {directory} is for the image in slot {slot} (PCR 11 {pcr11[:16]}…)"
