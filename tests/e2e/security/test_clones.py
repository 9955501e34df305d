"""A copy of the disk in a machine with another TPM, one that has booted the very same image."""

from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.flow import settle
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import copy_state, enrolled, happened, runs, says, site_of, waits_for_identity


def with_the_disk_of(original: Rig, clone: Rig) -> Rig:
    """Start a gateway on a copy of the disk: its own TPM, the same image, bridge and brokers of the original."""
    site, other = site_of(original), site_of(clone)
    copy_state(original, clone)
    other.maker = site.maker  # a genuine TPM, from the same shop
    other.boot()
    mine = clone.gateway_settings
    for section in ("identity", "cloud", "local"):
        mine[section] = original.gateway_settings[section]
    tcti = mine["vault"]["tcti"]
    mine["vault"] = {**original.gateway_settings["vault"], "tcti": tcti}
    clone.write()
    assert tcti != site.gateway_settings(0)["vault"]["tcti"]
    clone.start_gateway()
    return clone


def test_a_disk_in_another_machine_opens_nothing_and_is_nobody(secured: Secured) -> None:
    rig = enrolled(secured())
    rig.gateway.stop()
    clone = with_the_disk_of(rig, secured())
    says(clone, "motor", "cleared or replaced")
    assert "another" in waits_for_identity(clone, "failed")["reason"]

    # A cleverer thief has a new attestation key made: the endorsement key is still another one.
    clone.gateway.kill()
    (clone.state_directory / "vault" / "ak.json").unlink()
    clone.start_gateway()
    waits_for_identity(clone, "refused", "other-tpm")
    assert happened(rig)["other-tpm"]["gateway"] == GATEWAY_ID
    committed = tally_of(rig).committed
    clone.gateway.kill()
    assert tally_of(rig).committed == committed

    # The disk is as good as ever where it belongs, also without that file.
    (rig.state_directory / "vault" / "ak.json").unlink()
    rig.start_gateway()
    waits_for_identity(rig, "valid")
    runs(rig, "motor")
    eventually(lambda: tally_of(rig).committed > committed, "records arrive from the original")
    settle(rig)
