"""Claims that somebody offers to this device, and which of them it takes. Decides, and touches nothing."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.appliance.claim import check_carried, read_claim
from gateway.appliance.errors import ClaimError
from gateway.wire.claimfile import CarriedClaim, from_qr
from gateway.wire.errors import MalformedMessageError


@dataclass(frozen=True, slots=True)
class Offer:
    """A claim as it was found, not read yet."""

    origin: str  # for people: `USB stick /dev/sda1, sluice-claim.yaml`
    content: bytes | str  # a file, or the text of a QR code
    erase: Callable[[], str]  # removes it where it was found; returns "" or why it could not, in words

    def claim(self) -> CarriedClaim:
        """Read it.

        Raises:
            ClaimError: it has mistakes.
        """
        if isinstance(self.content, bytes):
            return read_claim(self.content, self.origin)
        try:
            carried = from_qr(self.content)
        except MalformedMessageError as error:
            raise ClaimError(f"{self.origin}: {error}") from error
        if carried is None:
            raise ClaimError(f"{self.origin}: this QR code is no claim")
        return check_carried(carried, self.origin)


class Finder(Protocol):
    """A place where claims are offered."""

    @property
    def words(self) -> str:
        """Where it looks, for people."""

    def offers(self) -> Iterator[Offer]:
        """Look once. What cannot be read is not offered."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is made of all offers of one look."""

    taken: Offer | None
    claim: CarriedClaim | None
    refused: tuple[str, ...] = ()  # why not the others, in words


def choose(offers: Sequence[Offer], identifiers: Collection[str]) -> Choice:
    """Choose the one claim that is for this device.

    A claim that names devices is taken by those alone. Of two that would fit none is taken: a device must not become
    the one or the other by the order of files on a stick.

    Args:
        offers: of one look.
        identifiers: serial numbers and MAC addresses of this device.
    """
    here = {each.lower() for each in identifiers}
    fitting: list[tuple[Offer, CarriedClaim]] = []
    refused: list[str] = []
    for offer in offers:
        try:
            claim = offer.claim()
        except ClaimError as error:
            refused.append(str(error))
            continue
        if claim.only_for and here.isdisjoint(each.lower() for each in claim.only_for):
            names = ", ".join(sorted(here)) or "none"
            refused.append(f"{offer.origin}: it is for another device ({', '.join(claim.only_for)}); here: {names}")
        else:
            fitting.append((offer, claim))
    # A claim that names this device is meant more than one that names nobody.
    named = [pair for pair in fitting if pair[1].only_for]
    candidates = named or fitting
    different = {(claim.gateway, claim.code) for _, claim in candidates}
    if len(different) > 1:
        names = "; ".join(f"{offer.origin} for {claim.gateway}" for offer, claim in candidates)
        refused.append(f"several claims fit this device: {names}; leave one, or add `only_for` with its serial number")
        return Choice(None, None, tuple(refused))
    if not candidates:
        return Choice(None, None, tuple(refused))
    offer, claim = candidates[0]
    return Choice(offer, claim, tuple(refused))
