"""A machine that has booted something else gets neither the key of its models nor a certificate, and says why."""

from hil.loopback.rig import Rig, eventually
from hil.loopback.security import BOOT_STATE, measurements
from hil.loopback.tally import tally_of
from tests.e2e.flow import arrives, settle
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import enrolled, happened, reboots, runs, says, site_of, waits_for_identity

IMAGE_2 = "loopback-image-2"


def delivers_image_2(rig: Rig) -> None:
    """Do what comes with an update: the build server approves the new image, the operator lets it in."""
    site = site_of(rig)
    site.approve(IMAGE_2, site.approve_image(IMAGE_2, counter_at_most=2))


def test_a_changed_register_gets_no_key_and_no_certificate_until_the_new_image_is_approved(secured: Secured) -> None:
    rig = enrolled(secured())
    arrives(rig)
    changed = {**measurements(), 11: bytes(range(32))}
    reboots(rig, changed)
    says(rig, "motor", "PCR 11")
    assert "PCR 11" in waits_for_identity(rig, "refused")["reason"]
    assert "PCR 11" in happened(rig)["wrong-pcr"]["detail"]
    committed = tally_of(rig).committed
    # The same disk, TPM and gateway: what is missing is the approval alone.
    delivers_image_2(rig)
    reboots(rig, measurements(IMAGE_2))
    waits_for_identity(rig, "valid")
    runs(rig, "motor")
    eventually(lambda: tally_of(rig).committed > committed, "records arrive again")
    settle(rig)


def test_an_old_image_is_a_way_back_until_the_counter_has_moved_and_worthless_after(secured: Secured) -> None:
    rig = enrolled(secured())
    site = site_of(rig)
    delivers_image_2(rig)
    site.sign("advance-1", "--advance-from", "1")
    reboots(rig, measurements(IMAGE_2))
    runs(rig, "motor")
    reboots(rig, measurements(BOOT_STATE))
    runs(rig, "motor")

    reboots(rig, measurements(IMAGE_2))
    assert "2" in site.on_device("vault", "advance")
    reboots(rig, measurements(BOOT_STATE))
    says(rig, "motor", "counter")
    reboots(rig, measurements(IMAGE_2))
    runs(rig, "motor")
    waits_for_identity(rig, "valid")
    settle(rig)
