"""A TPM that dies: what runs goes on, what starts waits, and everything comes back with it."""

from hil.loopback.tally import tally_of
from tests.e2e.flow import arrives, goes_on, settle, statuses, waits
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import enrolled, renew, runs, says, site_of, tries_to_renew, waits_for_identity


def test_models_run_on_without_the_tpm_and_those_that_start_wait_for_it(secured: Secured) -> None:
    rig = enrolled(secured())
    site = site_of(rig)
    assert site.tpm is not None
    site.tpm.kill()
    goes_on(rig, "motor")
    goes_on(rig, "machine")
    tries_to_renew(rig)
    assert "TPM" in waits_for_identity(rig, "failed")["reason"]
    # The certificate is still good: records flow.
    waits(rig, tally_of(rig).enqueued + 5)
    arrives(rig)
    assert statuses(rig)["motor"]["state"] == "running"

    # A start is another matter: it needs the key.
    rig.gateway.kill()
    rig.start_gateway()
    for pipeline in ("motor", "machine"):
        says(rig, pipeline, "TPM")
        assert statuses(rig)[pipeline]["inferences"] == 0

    site.boot()
    tries_to_renew(rig)  # the bridge may have seen it between its start and what is measured then
    for pipeline in ("motor", "machine"):
        runs(rig, pipeline)
    waits_for_identity(rig, "valid")
    renew(rig)
    settle(rig)
