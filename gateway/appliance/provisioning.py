"""Makes an unprovisioned device a certain gateway: waits for a claim, checks it, applies it, erases it where it was."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from gateway.appliance.errors import AlreadyProvisionedError, ApplianceError, ClaimError
from gateway.appliance.image import read_image
from gateway.appliance.offers import Choice, Finder, Offer, choose
from gateway.appliance.places import Places
from gateway.appliance.placing import Placing
from gateway.appliance.plan import Provisioned, base_of, code_id, plan
from gateway.wire.claimfile import CLAIM_FILE_NAME, CarriedClaim

log = structlog.get_logger()

LOOK_EVERY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioner:
    """Provisions one device. Its methods block."""

    places: Places
    placing: Placing
    finders: Sequence[Finder]
    identifiers: Callable[[], Collection[str]]  # serial numbers and MAC addresses
    say: Callable[[str], None]  # to whoever looks at the console
    now_ns: Callable[[], int]  # UTC

    @property
    def provisioned(self) -> bool:
        """Whether this device is a gateway already."""
        return self.places.config.exists()

    def resume(self) -> Provisioned | None:
        """Finish what a power cut has interrupted; returns what was finished, None when there was nothing.

        Raises:
            ApplianceError: the disk refuses.
        """
        if not self.placing.prepared:
            return None
        record = self._staged()
        log.info("provisioning_resumed", gateway=record.gateway if record else "")
        if record is not None:
            self._erase_where_found(record.code_id)
        self.placing.commit()
        done = read_provisioned(self.places)
        if done is not None:
            self._tell_done(done)
        return done

    def apply(self, offer: Offer, claim: CarriedClaim, *, replace: bool = False) -> Provisioned:
        """Apply a claim.

        Args:
            offer: where it came from.
            claim: as read from it.
            replace: also over a device that is provisioned; what an earlier claim has brought is removed.

        Raises:
            AlreadyProvisionedError: it is, and `replace` is not wished.
            ClaimError: no valid configuration would come out; nothing has changed.
            ApplianceError: the disk refuses.
        """
        if self.provisioned and not replace:
            raise AlreadyProvisionedError(
                f"this device is provisioned already ({self.places.config}); `gateway appliance reset` erases it, "
                "`--replace` puts the claim over what is there"
            )
        image = read_image(self.places.release)
        root = self.places.share / "registry-root.json"
        files = plan(
            claim,
            base_of(self._base_text()),
            origin=offer.origin,
            image=image.version,
            now_ns=self.now_ns(),
            registry_root=str(root) if root.exists() else None,
        )
        self.placing.prepare(files)
        self._erase(offer)
        self.placing.commit()
        done = read_provisioned(self.places)
        if done is None:
            raise ApplianceError(f"{self.places.provisioned} is not there after all; start the device again")
        self._tell_done(done)
        return done

    def scan(self, pause: Callable[[float], None]) -> Provisioned:
        """Wait until a claim is offered that fits, and apply it. Says what it waits for, and why others are not taken.

        Raises:
            AlreadyProvisionedError: there is nothing to wait for.
            ApplianceError: the disk refuses.
        """
        resumed = self.resume()
        if resumed is not None:
            return resumed
        if self.provisioned:
            raise AlreadyProvisionedError(f"this device is provisioned already ({self.places.config})")
        places = "; ".join(finder.words for finder in self.finders)
        identifiers = ", ".join(sorted(self.identifiers())) or "no serial number"
        self.say(f"This gateway ({identifiers}) waits for its claim. It looks for {CLAIM_FILE_NAME}, here: {places}.")
        self.say("A claim is made by: cloud-bridge identity token create NAME --claim-file FILE --qr FILE")
        log.info("claim_awaited", places=places, identifiers=identifiers)
        told: tuple[str, ...] = ()
        while True:
            choice = self._look()
            if choice.taken is not None and choice.claim is not None:
                try:
                    return self.apply(choice.taken, choice.claim)
                except ClaimError as error:
                    choice = Choice(None, None, (*choice.refused, f"{choice.taken.origin}: {error}"))
            self._tell_refused(choice.refused, told)
            told = choice.refused
            pause(LOOK_EVERY_SECONDS)

    def _look(self) -> Choice:
        return choose([offer for finder in self.finders for offer in finder.offers()], self.identifiers())

    def _tell_refused(self, refused: tuple[str, ...], told: tuple[str, ...]) -> None:
        for words in refused:
            if words not in told:
                log.warning("claim_refused", reason=words)
                self.say(f"Not taken: {words}")
        for words in told:
            if words not in refused:
                log.info("claim_gone", reason=words)

    def _tell_done(self, done: Provisioned) -> None:
        log.info("device_provisioned", gateway=done.gateway, origin=done.origin)
        self.say(f"This device is now the gateway {done.gateway} (from {done.origin}).")

    def _base_text(self) -> str | None:
        try:
            return self.places.base_config.read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ApplianceError(f"{self.places.base_config}: {error}; install another image") from error

    def _erase(self, offer: Offer) -> None:
        why = offer.erase()
        if why:
            log.warning("claim_not_erased", origin=offer.origin, reason=why)
            self.say(
                f"The claim could not be removed from {offer.origin} ({why}). It is worth nothing once this device has "
                "enrolled; remove it all the same."
            )

    def _staged(self) -> Provisioned | None:
        staged = self.placing.staged("settings", "provisioned.json")
        return _decoded(staged) if staged is not None else read_provisioned(self.places)

    def _erase_where_found(self, wanted: str) -> None:
        """Erase the claim that was applied, where it is still offered: the power may have gone before that."""
        if not wanted:
            return
        for finder in self.finders:
            for offer in finder.offers():
                try:
                    same = code_id(offer.claim().code) == wanted
                except ClaimError:
                    continue
                if same:
                    self._erase(offer)


def read_provisioned(places: Places) -> Provisioned | None:
    """Return how this device was provisioned; None when it was not, or by hand."""
    try:
        return _decoded(places.provisioned.read_bytes())
    except OSError:
        return None


def _decoded(content: bytes) -> Provisioned | None:
    try:
        return msgspec.json.decode(content, type=Provisioned)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def identifiers_of(sysfs: Path, device_tree: Path = Path("/proc/device-tree")) -> set[str]:
    """Return what tells this device from others on its label: serial numbers, MAC addresses of its own interfaces."""
    found: set[str] = set()
    files = [
        *(sysfs / "class/dmi/id" / name for name in ("product_serial", "board_serial", "chassis_serial")),
        device_tree / "serial-number",
        *(file for file in sysfs.glob("class/net/*/address") if (file.parent / "device").exists()),
    ]
    for file in files:
        try:
            text = file.read_text("utf-8", "replace").strip("\0 \n")
        except OSError:
            continue
        if text and text.lower() not in _NO_SERIAL and set(text) - set("0:"):
            found.add(text)
    return found


_NO_SERIAL: Final = frozenset(
    {"none", "not specified", "default string", "to be filled by o.e.m.", "system serial number"}
)
