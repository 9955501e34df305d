"""Which devices come when. Pure: the same fleet gives the same order, on every bridge and after every restart."""

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from cloud_bridge.rollout.errors import RolloutError

Labels = Mapping[str, str]

LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
RING: Final = "ring"
CANARY: Final = "canary"
"""Devices labelled `ring=canary` come first where a wave takes a number or a share."""

_COUNT: Final = re.compile(r"[0-9]{1,7}")
_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)\s*%")


class Wave(msgspec.Struct, frozen=True, omit_defaults=True):
    """One wave: a number of devices, a share of all, those with some labels, or the rest. Exactly one is set."""

    count: int = 0
    share: float = 0.0  # of all devices of the rollout, those of earlier waves included
    labels: dict[str, str] = {}
    rest: bool = False

    def __str__(self) -> str:
        if self.rest:
            return "rest"
        if self.labels:
            return "&".join(f"{key}={value}" for key, value in self.labels.items())
        return f"{self.share * 100:g}%" if self.share else str(self.count)


def waves_of(text: str) -> tuple[Wave, ...]:
    """Read waves: `1, 10%, site=a, site=b&kind=dock, rest`.

    Raises:
        RolloutError: a part is nothing of that, or something follows `rest`.
    """
    waves = tuple(_wave(part.strip()) for part in text.split(","))
    if any(wave.rest for wave in waves[:-1]):
        raise RolloutError(f"waves {text!r}: nothing is left after `rest`; put it last")
    shares = [wave.share for wave in waves if wave.share]
    if shares != sorted(set(shares)):
        raise RolloutError(f"waves {text!r}: a share counts the devices of earlier waves too, so shares must rise")
    return waves


def _wave(part: str) -> Wave:
    if part == "rest":
        return Wave(rest=True)
    share = _SHARE.fullmatch(part)
    if share is not None and 0 < float(share[1]) <= 100:
        return Wave(share=float(share[1]) / 100)
    if _COUNT.fullmatch(part) and int(part):
        return Wave(count=int(part))
    if "=" in part:
        return Wave(labels=labels_of(part.split("&")))
    raise RolloutError(f"{part!r} is no wave; write a number (1), a share (10%), labels (site=a&ring=b) or `rest`")


def labels_of(parts: Collection[str]) -> dict[str, str]:
    """Read labels, `KEY=VALUE` each.

    Raises:
        RolloutError: a key or a value has other signs than labels may have, or a key comes twice.
    """
    labels: dict[str, str] = {}
    for part in parts:
        key, _, value = part.strip().partition("=")
        if LABEL_KEY.fullmatch(key) is None or LABEL_VALUE.fullmatch(value) is None:
            raise RolloutError(f"{part!r} is no label; write KEY=VALUE, a-z first, without spaces, as in site=berlin")
        if key in labels:
            raise RolloutError(f"label {key!r} is given twice")
        labels[key] = value
    return labels


def matches(wanted: Labels, labels: Labels) -> bool:
    """Tell whether a device has all the labels."""
    return all(labels.get(key) == value for key, value in wanted.items())


def members(wave: Wave, fleet: Mapping[str, Labels], taken: Collection[str], seed: str) -> list[str]:
    """Return the devices of a wave, in order.

    fleet: all devices that the rollout is for, with their labels. taken: those of earlier waves. seed: the rollout; it
    draws the order, so that not the same device is everybody's canary, but the same one each time it is asked.
    """
    free = [name for name in fleet if name not in taken]
    ordered = sorted(free, key=lambda name: (fleet[name].get(RING) != CANARY, _place(seed, name)))
    if wave.rest:
        return ordered
    if wave.labels:
        return [name for name in ordered if matches(wave.labels, fleet[name])]
    if wave.count:
        return ordered[: wave.count]
    wanted = math.ceil(wave.share * len(fleet) - 1e-9)
    return ordered[: max(0, wanted - sum(1 for name in taken if name in fleet))]


def jitter(seed: str, name: str) -> float:
    """Return a number of 0..1 that belongs to a device of a rollout: when within a wave it is told."""
    return int.from_bytes(_place(seed + "/jitter", name)[:6], "big") / 2**48


def arms_cover(arms: Sequence[Labels], labels: Labels) -> int | None:
    """Return which arm of an A/B rollout a device is in, the first that fits; None if none does."""
    return next((at for at, wanted in enumerate(arms) if matches(wanted, labels)), None)


def _place(seed: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
