"""What a device must be after a power cut in the middle of updates: one of two releases, whole, and able to go on."""

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from gateway.errors import GatewayError
from gateway.ota.errors import OtaError
from gateway.vault.errors import VaultError
from tests.chaos.storage import ota_victim
from tests.chaos.storage.ota_victim import BIASES, FIRST
from tests.gateway.ota.rig import Device
from tests.simulators.published_repository import weights

LAST: Final = [*BIASES][-1]


@dataclass(slots=True)
class OtaVerdict:
    """What one point has shown."""

    allowed: tuple[str, ...] = ()
    runs: str = ""  # empty: neither
    faults: list[str] = field(default_factory=list)
    torn_downloads: int = 0  # files that have the name of a finished download and are not what was signed

    @property
    def neither(self) -> bool:
        """Whether nothing runs, or something that nobody may expect to run."""
        return self.runs not in self.allowed

    def held_to(self, marks: Iterable[str]) -> Self:
        """Return the verdict where these marks have been made: they say what may run."""
        held = replace(self, allowed=allowed_by(marks), faults=[*self.faults])
        if held.neither:
            held.faults.append(f"runs {held.runs or 'nothing'}, not one of {held.allowed}")
        return held


def allowed_by(marks: Iterable[str]) -> tuple[str, ...]:
    """Return what may run: what was done last, and what is being done."""
    allowed: tuple[str, ...] = (FIRST,)
    for mark in marks:
        word, _, version = mark.partition(" ")
        if word == "wish":
            allowed = (*allowed, version)
        elif word == "done":
            allowed = (version,)
    return allowed


def state_of(root: Path) -> bytes:
    """Return a digest of all that a start of the device can find on its disk, so that no state is judged twice.

    It is names, kinds, modes, owners, links and times of everything below `root`, the content of files, and the room
    that is left. The file of the other program is none of it: the device does not know that one.
    """
    told = hashlib.blake2b(digest_size=16)
    room = os.statvfs(root)
    told.update(repr((room.f_bavail, room.f_favail)).encode())
    for each in sorted(root.rglob("*")):
        if each == root / ota_victim.OTHERS:
            continue
        status = each.lstat()
        words = [str(each.relative_to(root)), status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns]
        if stat.S_ISREG(status.st_mode):
            words += [status.st_nlink, hashlib.blake2b(each.read_bytes()).hexdigest()]
        elif stat.S_ISLNK(status.st_mode):
            words.append(str(each.readlink()))
        told.update(repr(words).encode())
    return told.digest()


def judge(root: Path, published: Path, marks: Iterable[str], signed: set[str]) -> OtaVerdict:
    """Start the device on what is left, and say what it runs and whether it may."""
    return look(root, published, signed).held_to(marks)


def look(root: Path, published: Path, signed: set[str]) -> OtaVerdict:
    """Start the device on what is left, and say what it runs, whatever that is."""
    verdict = OtaVerdict()
    try:
        verdict.torn_downloads = _torn(root, signed)
        made = ota_victim.device(root, published)
        if made.journal.damage:
            verdict.faults.append(made.journal.damage)
        model = ota_victim.begin(made)
        model.close()
        verdict.runs = model.ref.version
        made.agent.run_ended("motor")  # one more start is no crash
        _look_at_weights(made, verdict)
        verdict.faults += [f"{code}: {detail}" for code, detail in made.notices]
    except (GatewayError, OSError) as error:
        verdict.faults.append(f"does not start: {error}")
    return verdict


def converge(root: Path, published: Path) -> list[str]:
    """Start the device once more, hand it the last wish, and say what does not end well."""
    faults: list[str] = []
    try:
        made = ota_victim.device(root, published)
        ota_victim.begin(made)
        ota_victim.update(made, LAST)
        verdict = OtaVerdict((LAST,), made.serving)
        _look_at_weights(made, verdict)
        made.bay.let_go()
    except (GatewayError, OSError) as error:
        return [f"a second start fails: {error}"]
    if verdict.neither or made.slot.trial is not None or made.slot.wanted is not None:
        faults.append(f"a second start does not converge: runs {made.serving}, {made.slot}")
    left = [*(root / "state/ota").rglob("*.part"), *(root / "state/models").rglob("*.partial")]
    faults += [f"is left: {each}" for each in left]
    return faults + verdict.faults


def _look_at_weights(made: Device, verdict: OtaVerdict) -> None:
    """What runs must be, to the byte, what was published."""
    version = verdict.runs
    try:
        release = made.store().find(f"probe@{version}")
        artefact = release.manifest.artefacts[0]
        with made.vault.open_weights(made.models.directory / "probe" / version, artefact) as opened:
            found = bytes(opened.view)
    except (OtaError, VaultError) as error:
        verdict.faults.append(f"{version}: {error}")
        return
    if found != weights(BIASES[version]):
        verdict.faults.append(f"{version}: the weights are not those that were published")


def _torn(root: Path, signed: set[str]) -> int:
    """Count finished downloads that are not what was signed."""
    ota = root / "state/ota"
    finished = [*(ota / "manifests").glob("[!.]*"), *(ota / "incoming").rglob("[!.]*")]
    files = [file for file in finished if file.is_file()]
    return sum(hashlib.sha256(file.read_bytes()).hexdigest() not in signed for file in files)
