"""RAUC through its command line: how the slots stand, what a bundle is, and installing one.

The commands talk to RAUC's service over D-Bus, so the gateway needs no rights of its own for it. Formats as of RAUC 1.8
to 1.15 (`src/main.c`: `--output-format=json` of `status`, `json-2` and `json` of `info`).
"""

import json
import os
import re
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from gateway.osupdate.errors import (
    BadSignatureError,
    BelowFloorError,
    IncompatibleError,
    InstallFailedError,
    NotAsAnnouncedError,
    OnTrialError,
    OsUpdateError,
    RaucBusyError,
    RaucUnavailableError,
    StreamingFailedError,
)
from gateway.osupdate.release import BundleFacts
from gateway.ota.errors import StoppedError, StorageError

ASK_SECONDS: Final = 60.0
SILENT_SECONDS: Final = 2 * 3600.0
"""An installation that says nothing for so long is given up here; RAUC may still end it.

From the beginning to the end of hashing and copying a slot it says nothing, which a slow device takes an hour for.
"""
_PIECE_SECONDS: Final = 0.5
_REMEMBERED_LINES: Final = 30
_MAX_OUTPUT_BYTES: Final = 1 << 20

Activated = Literal["booted", "other"]
Progress = Callable[[int, str], None]
"""Told how far an installation is, in percent, and at what."""

_PERCENT: Final = re.compile(r"\s*(\d{1,3})%\s*(.*)")

_OWN_CHECK: Final = re.compile(r"pre-install handler error: .*exited with code (\d+)", re.I)
_OWN_CHECKS: Final[Mapping[str, tuple[type[OsUpdateError], str]]] = {
    "20": (BelowFloorError, "the bundle is below the floor of the running release"),
    "21": (NotAsAnnouncedError, "the bundle does not say which version it is"),
    "22": (OnTrialError, "the running slot has not been marked good"),
    "23": (IncompatibleError, "the bundle is for another board"),
}
"""What /usr/lib/sluice/pre-install of the appliance means; RAUC keeps the words of a handler for its own log."""
_NOT_READ: Final = re.compile(r"failed to (open bundle for reading|query bundle file info|read signature)", re.I)
"""The medium or the network has given nothing. RAUC calls that an invalid bundle, too; it says nothing about it."""
_MEANINGS: Final[tuple[tuple[re.Pattern[str], type[OsUpdateError | StorageError]], ...]] = (
    # Where a file of a damaged bundle cannot be read, the service of RAUC 1.13 crashes; systemd starts it again.
    (re.compile(r"rauc service disappeared", re.I), InstallFailedError),
    (re.compile(r"already processing|installation in progress|rauc busy", re.I), RaucBusyError),
    (re.compile(r"below.{0,40}floor|floor.{0,40}above|version mismatch: expected at least", re.I), BelowFloorError),
    (re.compile(r"compatible mismatch|compatible.{0,40}does not match|incompatible", re.I), IncompatibleError),
    (
        re.compile(
            r"signature verification failed|failed to verify|verify error|invalid signature|no signature"
            r"|signature size|certificate verif|not a valid bundle|invalid bundle|identifier mismatch",
            re.I,
        ),
        BadSignatureError,
    ),
    (
        re.compile(r"accessdenied|access denied|not authorized|permission denied|not allowed to", re.I),
        RaucUnavailableError,
    ),
    (re.compile(r"failed to contact rauc|d-bus error|serviceunknown|error creating proxy", re.I), RaucUnavailableError),
    (re.compile(r"no space left", re.I), StorageError),
    (
        re.compile(r"hash device is too small|nbd|streaming|http (error|response)|curl|download", re.I),
        StreamingFailedError,
    ),
)
"""What the words of RAUC mean, the most telling first."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot that can be started. `good`: None where the boot loader does not say."""

    name: str  # rootfs.0
    bootname: str  # a
    booted: bool
    good: bool | None = None
    version: str = ""  # of the bundle that was installed there last, "" if not known
    complete: bool = True  # whether that installation came to its end


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """How the slots stand. `primary`: the boot name of the one that is started next."""

    compatible: str
    booted: str  # boot name
    primary: str
    slots: tuple[Slot, ...]

    @property
    def running(self) -> Slot | None:
        """The slot that runs."""
        return next((slot for slot in self.slots if slot.booted), None)

    @property
    def other(self) -> Slot | None:
        """The one that the next bundle goes to."""
        return next((slot for slot in self.slots if not slot.booted), None)


class Rauc(Protocol):
    """What is needed of RAUC. Every method blocks."""

    def status(self) -> SystemStatus:
        """Tell how the slots stand. Raises RaucUnavailableError."""
        ...

    def info(self, bundle: str) -> BundleFacts:
        """Verify the signature of a bundle (a path or an address), and tell what it is.

        Raises:
            BundleRefusedError: it is not signed by whom this device believes.
            RaucUnavailableError: RAUC cannot be asked.
        """
        ...

    def install(self, source: str, progress: Progress) -> None:
        """Install a bundle, from a path or over HTTP, into the slot that does not run, and have it started next.

        Raises:
            BundleRefusedError: never this one.
            OsUpdateError, StorageError: not now.
            StoppedError: the gateway stops; RAUC goes on by itself.
        """
        ...


class RaucCli:
    """The `rauc` command."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stopping: Callable[[], bool] = lambda: False,
        silent_seconds: float = SILENT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the command; `stopping` tells that the gateway stops."""
        self._command = tuple(command)
        self._stopping = stopping
        self._silent_seconds = silent_seconds
        self._monotonic = monotonic

    def status(self) -> SystemStatus:
        """See `Rauc.status`."""
        return status_of(self._json("status", "--detailed", "--output-format=json"))

    def info(self, bundle: str) -> BundleFacts:
        """See `Rauc.info`."""
        try:
            answer = self._json("info", "--output-format=json-2", bundle)
        except RaucUnavailableError as error:
            if "unknown output format" not in str(error).lower():
                raise
            answer = self._json("info", "--output-format=json", bundle)  # before 1.9
        return facts_of(answer)

    def keep_running(self) -> None:
        """Have the running slot started next; only root may. Raises RaucUnavailableError."""
        self._answer("status", "mark-active", "booted")

    def install(self, source: str, progress: Progress) -> None:
        """See `Rauc.install`."""
        try:
            child = subprocess.Popen(
                [*self._command, "install", source],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
        except OSError as error:
            raise self._absent(error) from error
        with child:
            try:
                words = self._follow(child, progress)
            finally:
                if child.poll() is None:
                    child.terminate()  # only the asking ends: the service does not give up an installation
        if child.returncode != 0:
            raise meaning_of(words, InstallFailedError)

    def _follow(self, child: "subprocess.Popen[bytes]", progress: Progress) -> str:
        """Read what an installation says until it ends; return the last of it."""
        assert child.stdout is not None
        lines: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        heard_at, rest = self._monotonic(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if self._stopping():
                    raise StoppedError("the gateway stops; RAUC goes on with the installation by itself")
                if self._monotonic() - heard_at > self._silent_seconds:
                    raise InstallFailedError(f"the installation said nothing for {self._silent_seconds:g} s")
                if not selector.select(_PIECE_SECONDS):
                    continue
                piece = os.read(child.stdout.fileno(), 65536)
                if not piece:
                    break
                heard_at = self._monotonic()
                *whole, rest = (rest + piece)[-_MAX_OUTPUT_BYTES:].split(b"\n")
                for line in whole:
                    lines.append(_told(line.decode(errors="replace"), progress))
        child.wait()
        return "\n".join([*lines, rest.decode(errors="replace")]).strip()

    def _json(self, *arguments: str) -> Mapping[str, Any]:
        said = self._answer(*arguments)
        try:
            answer = json.loads(said[:_MAX_OUTPUT_BYTES])
        except (ValueError, RecursionError) as error:
            raise RaucUnavailableError(f"`rauc {arguments[0]}` gave no JSON: {error}") from error
        if not isinstance(answer, dict):
            raise RaucUnavailableError(f"`rauc {arguments[0]}` gave no object")
        return answer

    def _answer(self, *arguments: str) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=ASK_SECONDS,
                check=False,
                env=_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise RaucUnavailableError(f"`rauc {arguments[0]}` did not answer within {ASK_SECONDS:g} s") from error
        except OSError as error:
            raise self._absent(error) from error
        if done.returncode != 0:
            raise meaning_of(done.stderr.decode(errors="replace").strip(), RaucUnavailableError)
        return done.stdout

    def _absent(self, error: OSError) -> RaucUnavailableError:
        return RaucUnavailableError(
            f"{self._command[0]} cannot be started ({error.strerror or error}): is RAUC installed?"
        )


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _told(line: str, progress: Progress) -> str:
    match = _PERCENT.fullmatch(line.rstrip())
    if match is not None:
        progress(min(100, int(match[1])), match[2].strip())
    return line.rstrip()


def meaning_of(words: str, otherwise: type[OsUpdateError]) -> OsUpdateError | StorageError:
    """Return the error that RAUC's words mean; its last words are kept."""
    lines = (line for line in words.splitlines() if line.strip() and not line.startswith("rauc-Message: "))
    told = [line for line in lines if _PERCENT.fullmatch(line) is None]
    short = " / ".join(told[-6:])[-800:] or "RAUC failed without a word"
    own = _OWN_CHECK.search(words)
    if own is not None and own[1] in _OWN_CHECKS:
        refused, meaning = _OWN_CHECKS[own[1]]
        return refused(f"{meaning} ({short}; more in `journalctl -u rauc`)")
    if _NOT_READ.search(words) is not None:
        return otherwise(short)
    for pattern, kind in _MEANINGS:
        if pattern.search(words):
            return kind(short)
    return otherwise(short)


def status_of(answer: Mapping[str, Any]) -> SystemStatus:
    """Read the answer of `rauc status --detailed`.

    Raises:
        RaucUnavailableError: it is none.
    """
    try:
        named = [(name, slot) for each in answer["slots"] for name, slot in each.items()]
        slots = tuple(_slot(name, slot) for name, slot in named if slot.get("bootname"))
        primary = next((slot.bootname for slot in slots if slot.name == answer.get("boot_primary")), "")
        booted = next((slot.bootname for slot in slots if slot.booted), str(answer.get("booted") or ""))
        return SystemStatus(str(answer["compatible"]), booted, primary, slots)
    except (KeyError, TypeError, AttributeError) as error:
        raise RaucUnavailableError(f"the answer of `rauc status` is not understood: {error!r}") from error


def _slot(name: str, said: Mapping[str, Any]) -> Slot:
    status = said.get("slot_status") or {}
    boot = said.get("boot_status")
    return Slot(
        name=name,
        bootname=str(said["bootname"]),
        booted=said.get("state") == "booted",
        good=boot == "good" if boot in ("good", "bad") else None,
        version=str((status.get("bundle") or {}).get("version") or ""),
        complete=status.get("status") in (None, "ok"),
    )


def facts_of(answer: Mapping[str, Any]) -> BundleFacts:
    """Read the answer of `rauc info`, of either JSON format.

    Raises:
        BadSignatureError: it does not say what the bundle is.
    """
    update = answer.get("update", answer)
    meta = (answer.get("meta") or {}).get("sluice") or {}
    images = answer.get("images") or []
    try:
        inner = [image for each in images for image in ([each] if "filename" in each else each.values())]
        return BundleFacts(
            compatible=str(update["compatible"]),
            version=str(meta.get("version") or update["version"]),
            floor=str(meta.get("floor") or ""),
            counter=int(meta["counter"]) if str(meta.get("counter", "")).isdigit() else None,
            adaptive=any(image.get("adaptive") for image in inner),
            pcr11=pcr11_of(meta),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadSignatureError(f"the bundle does not say what it is: {error!r}") from error


def pcr11_of(meta: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what an image measures into PCR 11, by slot, from `pcr11-a=`, `pcr11-b=` of its manifest."""
    return tuple(
        (key.removeprefix("pcr11-"), str(value).lower())
        for key, value in sorted(meta.items())
        if key.startswith("pcr11-") and re.fullmatch(r"[0-9a-fA-F]{64}", str(value))
    )
