"""Decides whether an image may stay: what the gateway has shown over a soak, against what it did before. Pure.

An update is taken back for what the image can be blamed for: a gateway that does not start, stays up or moves, a
vault that no longer opens, an identity that is refused. It is not taken back for what would be the same under the
old image: a network that is down, a camera on the network that is off, a full disk. Otherwise one dead switch would
take an update back on a whole site, and again at each try.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from gateway.report import GatewayStatus
from gateway.wire.messages import PipelineStatus

MAX_RESTARTS: Final = 1
"""Of gateway.service in one boot: one may be a driver that was not ready yet, two are a pattern."""
MIN_FREE_MEMORY: Final = 0.05
_NETWORK_SOURCES: Final = ("rtsp://", "rtsps://", "http://", "https://", "tcp://")


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """How it was when all was well the last time: what an update must not make worse."""

    image: str = ""
    progressing: list[str] = []  # pipelines that gave answers
    vault_ready: bool | None = None
    identity_valid: bool = False
    cloud_connected: bool = False
    interfaces: list[str] = []  # physical network interfaces
    failed_components: list[str] = []


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the device."""

    at: float  # monotonic, seconds
    status: GatewayStatus | None  # None: it did not answer
    problem: str = ""  # why
    restarts: int | None = None  # of gateway.service since the boot, as systemd counts; None: unknown
    free_memory: float = 1.0  # share of all
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """What is known beside the looks."""

    before: Baseline | None  # None: never judged healthy
    config_errors: tuple[str, ...] = ()  # of gateway.yaml, as this image reads it
    network_pipelines: frozenset[str] = frozenset()  # whose source is across the network
    cold: frozenset[str] = frozenset()  # that may honestly give no answer within a soak, such as leaf sensors


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out."""

    word: Literal["healthy", "unhealthy"]
    reasons: tuple[str, ...]  # against it
    notes: tuple[str, ...]  # what is not well and no reason
    now: Baseline  # for the next time, when healthy


def is_remote(device: str) -> bool:
    """Tell whether a source's device is across the network, so that its silence says nothing about the image."""
    return device.startswith(_NETWORK_SOURCES)


def judge(looks: Collection[Look], device: Device, image: str) -> Verdict:
    """Judge a soak.

    Args:
        looks: in the order of time; the first with a status begins the soak.
        device: what is known beside them.
        image: the version that runs.
    """
    reasons: list[str] = [f"this image cannot use gateway.yaml: {error}" for error in device.config_errors]
    notes: list[str] = []
    answered = [look for look in looks if look.status is not None]
    if not answered:
        last = [look.problem for look in looks if look.problem]
        reasons.append(f"the gateway does not answer: {last[-1] if last else 'no look was taken'}")
        return Verdict("unhealthy", tuple(reasons), (), device.before or Baseline())
    first, last_look = answered[0], answered[-1]
    assert first.status is not None
    status = last_look.status
    assert status is not None
    _uptime([look for look in looks if look.at >= first.at], reasons)
    progressing = _pipelines(first.status, status, device, reasons, notes)
    before = device.before or Baseline()
    settled = [look.status for look in answered[-max(1, len(answered) // 4) :] if look.status is not None]
    for check in (_outbox, _vault, _identity, _components):
        _lasting(check, settled, before, reasons, notes)
    _links(status, before, notes)
    if last_look.free_memory < MIN_FREE_MEMORY:
        reasons.append(f"{last_look.free_memory:.0%} of the memory is free, less than {MIN_FREE_MEMORY:.0%}")
    if before.interfaces and not set(before.interfaces) & set(last_look.interfaces):
        names = ", ".join(before.interfaces)
        reasons.append(f"no network interface is left of {names}: that is a driver and no network that is down")
    now = Baseline(
        image=image,
        progressing=progressing,
        vault_ready=status.vault.ready if status.vault is not None else None,
        # What only the network keeps from being well now is still asked of the next image.
        identity_valid=status.identity is not None
        and (status.identity.state == "valid" or (status.identity.state == "unreachable" and before.identity_valid)),
        cloud_connected=status.cloud is not None and status.cloud.state == "connected",
        interfaces=sorted(last_look.interfaces),
        failed_components=sorted(_own_components(status)),
    )
    return Verdict("unhealthy" if reasons else "healthy", tuple(reasons), tuple(notes), now)


def _uptime(looks: Collection[Look], reasons: list[str]) -> None:
    silent = [look for look in looks if look.status is None]
    pids = {look.status.pid for look in looks if look.status is not None}
    counted = [look.restarts for look in looks if look.restarts is not None]
    restarts = max([*counted, len(pids) - 1])
    if restarts > MAX_RESTARTS:
        reasons.append(f"gateway.service has restarted {restarts} times in this boot, more than {MAX_RESTARTS}")
    ordered = [*looks]
    if ordered[-1].status is None:
        reasons.append(f"the gateway has stopped answering: {ordered[-1].problem}")
    elif len(silent) * 2 > len(ordered):
        reasons.append(f"the gateway has not answered {len(silent)} of {len(ordered)} times")


def _pipelines(
    first: GatewayStatus, last: GatewayStatus, device: Device, reasons: list[str], notes: list[str]
) -> list[str]:
    began: Mapping[str, PipelineStatus] = {each.pipeline: each for each in first.pipelines}
    must = set(device.before.progressing) if device.before is not None else set()
    progressing: list[str] = []
    for each in last.pipelines:
        start = began.get(each.pipeline)
        same_run = first.pid == last.pid
        gained = each.inferences - (start.inferences if start is not None and same_run else 0)
        if gained > 0:
            progressing.append(each.pipeline)
            continue
        words = f"pipeline {each.pipeline} gives no answers ({each.state}, source {each.source_state}"
        words += f": {each.last_error})" if each.last_error else ")"
        if each.pipeline in device.network_pipelines and each.source_state in ("lost", "opening"):
            notes.append(f"{words}; its source is across the network, which no image is blamed for")
        elif each.pipeline in device.cold or each.source_state == "ended":
            notes.append(f"{words}; its source may be silent for longer than this")
        elif each.pipeline in must:
            reasons.append(f"{words}; it did before the update")
        elif device.before is None and each.state == "failed":
            reasons.append(words)
        else:
            notes.append(f"{words}; nor did it before" if device.before is not None else words)
    missing = must - {each.pipeline for each in last.pipelines}
    notes += [f"pipeline {name} is configured no more" for name in sorted(missing)]
    # Silent for another's fault is no reason to ask less of the next image.
    return sorted({*progressing, *(name for name in must - missing if name in device.network_pipelines)})


Findings = tuple[list[str], list[str]]
"""Reasons against an image, and notes."""
Check = Callable[[GatewayStatus, Baseline], Findings]


def _lasting(
    check: Check, settled: Sequence[GatewayStatus], before: Baseline, reasons: list[str], notes: list[str]
) -> None:
    """Blame an image only for what was wrong through the last quarter of the soak: a TPM may be slow for once."""
    found = [check(status, before) for status in settled]
    against, remarks = found[-1]
    notes += remarks
    if all(each for each, _ in found):
        reasons += against
    else:
        notes += [f"{words}; not all the time" for words in against]


def _outbox(status: GatewayStatus, _before: Baseline) -> Findings:
    if status.outbox.disk_full:
        return [], ["the disk of the outbox is full"]
    if status.outbox.state == "open":
        return [], []
    return [f"the outbox cannot be written: {status.outbox.reason or status.outbox.state}"], []


def _vault(status: GatewayStatus, before: Baseline) -> Findings:
    if status.vault is None or (status.vault.ready and not status.vault.waiting):
        return [], []
    why = "; ".join([*status.vault.problems, *status.vault.waiting.values()]) or "no reason given"
    if before.vault_ready is False:
        return [], [f"the vault does not open, nor did it before: {why}"]
    if status.vault.ready:
        return [], [f"pipelines wait for keys that the vault does not have: {why}"]
    return [f"the vault does not open in this boot state: {why}"], []


def _identity(status: GatewayStatus, before: Baseline) -> Findings:
    identity = status.identity
    if identity is None or identity.state == "valid":
        return [], []
    words = f"identity {identity.state}: {identity.reason or 'no answer yet'}"
    if identity.state in ("refused", "failed") and before.identity_valid:
        return [f"{words}; it was valid before the update"], []
    return [], [words]


def _components(status: GatewayStatus, before: Baseline) -> Findings:
    reasons: list[str] = []
    notes: list[str] = []
    for name, why in sorted(_own_components(status).items()):
        if name in before.failed_components:
            notes.append(f"{name} does not run, nor did it before: {why}")
        elif name not in ("outbox", "identity"):  # judged by themselves
            reasons.append(f"{name} does not run: {why}")
    return reasons, notes


def _own_components(status: GatewayStatus) -> dict[str, str]:
    """Return what of the gateway itself does not run; pipelines are judged by their answers."""
    return {name: why for name, why in status.components.items() if not name.startswith("pipeline-")}


def _links(status: GatewayStatus, before: Baseline, notes: list[str]) -> None:
    if status.cloud is not None and status.cloud.state != "connected":
        was = "it was before the update, but a network that is down" if before.cloud_connected else "which"
        notes.append(f"the cloud is not reached ({status.cloud.reason or status.cloud.state}); {was} fails no image")
