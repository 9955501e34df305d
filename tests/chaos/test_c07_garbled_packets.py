"""C7: packets that overtake each other, come twice, or are not what was sent."""

import json

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network
from tests.chaos.netrig import NetRig
from tests.chaos.network import Weather, emulated
from tests.chaos.stand import Options
from tests.chaos.timing import pause

GARBLED = {
    "reordered": {"delay_ms": 5.0, "jitter_ms": 2.0, "reorder": 0.1},
    "duplicated": {"delay_ms": 5.0, "duplicate": 0.1},
    "corrupted": {"delay_ms": 5.0, "corrupt": 0.05},
}


@pytest.mark.parametrize("how", GARBLED)
def test_c07_what_tcp_can_mend_is_not_noticed(experiment: Experiment, network: Network, how: str) -> None:
    weather = Weather(**GARBLED[how], seed=experiment.random.randrange(1 << 30))
    with NetRig(experiment, network, Options(rate=500.0, burst=2000)) as stand:
        stand.start()
        stand.remember()
        with emulated(network, "device", weather, experiment.directory / f"{how}.log") as report:
            stand.ask("burst")
            stand.flows(1)
            pause(experiment.seconds(4.0, 1 / 60))
        done = json.loads(report.read_text())
        experiment.log("emulated", **done)
        assert done[how] > 10, f"the injector did little: {done}"
        stand.settle(least=2000)


def test_c07_forged_packets_are_caught_by_tls_and_nothing_is_altered(experiment: Experiment, network: Network) -> None:
    with NetRig(experiment, network, Options(rate=500.0, burst=2000), tls=True) as stand:
        stand.start()
        stand.remember()
        forge(experiment, network, stand)
        stand.settle(least=2000, timeout_seconds=90.0)
        connects = int(stand.told()["connects"])
        assert connects > 1, "no connection broke: the injector has no effect"
        assert stand.logged("producer", "mqtt_not_connected"), "nothing in the log tells of the broken connections"


def test_c07_control_without_tls_forged_packets_are_caught_by_the_oracle(
    experiment: Experiment, network: Network
) -> None:
    with NetRig(experiment, network, Options(rate=500.0, burst=2000)) as stand:
        stand.start()
        forge(experiment, network, stand)
        stand.drained(90.0)
        verdict = stand.oracle.judge(stand.database)
        letters = stand.dead_letters()
        experiment.log("judged", verdict=verdict, dead_letters=letters)
        assert verdict.altered + letters > 0
        assert verdict.lost == verdict.duplicates == 0


def forge(experiment: Experiment, network: Network, stand: NetRig) -> None:
    """Change bytes in packets and make their checksums right, for a while."""
    weather = Weather(delay_ms=2.0, forge=0.02, seed=experiment.random.randrange(1 << 30))
    with emulated(network, "device", weather, experiment.directory / "forged.log") as report:
        for _ in range(experiment.scaled(3, 60)):
            stand.ask("burst")
            pause(1.5)
    done = json.loads(report.read_text())
    experiment.log("emulated", **done)
    assert done.get("forged", 0) > 3, f"the injector did little: {done}"
