"""C5: records arrive, and the acknowledgements do not come back."""

import signal

from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network
from tests.chaos.netrig import NetRig
from tests.chaos.network import partition
from tests.chaos.stand import Options, Stand
from tests.chaos.timing import pause

RESEND_FACTOR = 3.0


def test_c05_a_link_that_works_only_towards_the_cloud_is_not_flooded(experiment: Experiment, network: Network) -> None:
    seconds = experiment.seconds(6.0, 1 / 30)
    with NetRig(experiment, network, Options(rate=300.0)) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        with partition(network, "device", "to"):
            pause(seconds)
        stand.flows(1)
        stand.settle(least=300)
        experiment.log("resent", factor=resend_factor(stand))
        assert resend_factor(stand) <= RESEND_FACTOR


def test_c05_withheld_acknowledgements_do_not_make_a_gateway_send_everything_again_and_again(
    experiment: Experiment,
) -> None:
    factor = withhold(experiment, Options(rate=300.0))
    assert factor <= RESEND_FACTOR


def test_c05_control_an_impatient_gateway_sends_too_much_and_is_caught(experiment: Experiment) -> None:
    factor = withhold(experiment, Options(rate=300.0, ack_timeout_seconds=0.01))
    assert factor > RESEND_FACTOR


def withhold(experiment: Experiment, options: Options) -> float:
    """Let the broker drop the bridge's marks for a while, by its access list; return how often a record was sent."""
    rules = experiment.directory / "rules.acl"
    allowed = "user chaos\ntopic readwrite #\n"
    rules.write_text(allowed)
    options = Options(
        rate=options.rate, ack_timeout_seconds=options.ack_timeout_seconds, broker_lines=(f"acl_file {rules}",)
    )
    seconds = experiment.seconds(4.0, 1 / 30)
    with Stand(experiment, options) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        rules.write_text("user chaos\ntopic deny sluice/v1/producer/ack/#\ntopic readwrite #\n")
        stand.rig.broker.signal(signal.SIGHUP)
        stand.until(lambda: stand.told()["partition"] == "degraded", "nothing is acknowledged any more")
        made = int(stand.told()["made"])
        before = stand.committed()
        pause(seconds)
        experiment.log("withheld", made=int(stand.told()["made"]) - made, committed=stand.committed() - before)
        rules.write_text(allowed)
        stand.rig.broker.signal(signal.SIGHUP)
        stand.until(lambda: stand.told()["partition"] == "healthy", "acknowledgements are back", 60.0)
        assert stand.logged("producer", "acks_overdue"), "nothing in the log says that acknowledgements are overdue"
        assert stand.logged("producer", "acks_are_back"), "nothing in the log says that they are back"
        stand.settle(least=300)
        factor = resend_factor(stand)
        experiment.log("resent", factor=factor)
    return factor


def resend_factor(stand: Stand) -> float:
    """Return how often a record was sent, on average."""
    status = stand.told()
    return float(status["sent_records"]) / float(status["made"])
