"""An image stays or goes for what it can be blamed for, and for nothing else."""

from typing import Any

import pytest

from gateway.appliance.soak import Baseline, Device, Look, Verdict, is_remote, judge
from gateway.report import GatewayStatus, IdentityReport, LinkReport, OutboxReport, VaultReport
from gateway.wire.messages import PipelineStatus

GOOD = Baseline(
    image="1",
    progressing=["door"],
    vault_ready=True,
    identity_valid=True,
    cloud_connected=True,
    interfaces=["en0"],
)


def pipeline(inferences: int, name: str = "door", **more: Any) -> PipelineStatus:
    fields: dict[str, Any] = {"state": "running", "source_state": "streaming", "at": "", **more}
    return PipelineStatus(pipeline=name, inferences=inferences, **fields)


def status(*pipelines: PipelineStatus, **more: Any) -> GatewayStatus:
    fields: dict[str, Any] = {
        "pid": 42,
        "outbox": OutboxReport(state="open", epoch="e"),
        "vault": VaultReport(level="tpm", initialised=True, ready=True),
        "identity": IdentityReport(state="valid", level="tpm"),
        "cloud": LinkReport(state="connected"),
        **more,
    }
    return GatewayStatus(gateway="dock-7", version="1", at="", uptime_seconds=1, pipelines=[*pipelines], **fields)


def look(at: float, found: GatewayStatus | None, **more: Any) -> Look:
    fields: dict[str, Any] = {"restarts": 0, "interfaces": ("en0",), **more}
    return Look(at, found, "" if found is not None else "no gateway is running", **fields)


def soaked(last: GatewayStatus, before: Baseline | None = GOOD, **more: Any) -> Verdict:
    device = Device(before, **{key: more.pop(key) for key in ("network_pipelines", "cold") if key in more})
    looks = [look(0, status(pipeline(0))), look(60, last, **more)]
    return judge(looks, device, "2")


def test_what_goes_on_as_before_is_healthy_and_becomes_the_next_measure() -> None:
    verdict = soaked(status(pipeline(10)))
    assert (verdict.word, verdict.reasons, verdict.notes) == ("healthy", (), ())
    assert verdict.now == Baseline(
        image="2", progressing=["door"], vault_ready=True, identity_valid=True, cloud_connected=True, interfaces=["en0"]
    )


@pytest.mark.parametrize(
    ("last", "more", "reason"),
    [
        (
            status(pipeline(0)),
            {},
            "pipeline door gives no answers (running, source streaming); it did before the update",
        ),
        (
            status(pipeline(0, state="failed", source_state="lost", last_error="no such device")),
            {},
            "source lost: no such device); it did before",
        ),
        (
            status(pipeline(10), outbox=OutboxReport(state="failed", epoch="e", reason="I/O error")),
            {},
            "the outbox cannot be written: I/O error",
        ),
        (
            status(pipeline(10), vault=VaultReport(level="tpm", problems=["PCR 11 is wrong"])),
            {},
            "the vault does not open in this boot state: PCR 11 is wrong",
        ),
        (
            status(pipeline(10), identity=IdentityReport(state="refused", level="tpm", reason="no-approved-state")),
            {},
            "identity refused: no-approved-state; it was valid before the update",
        ),
        (status(pipeline(10), components={"metrics": "port taken"}), {}, "metrics does not run: port taken"),
        (status(pipeline(10)), {"restarts": 2}, "gateway.service has restarted 2 times in this boot"),
        (status(pipeline(10)), {"free_memory": 0.02}, "2% of the memory is free"),
        (status(pipeline(10)), {"interfaces": ("lo",)}, "no network interface is left of en0"),
    ],
)
def test_an_image_goes_for_what_it_can_be_blamed_for(last: GatewayStatus, more: dict[str, Any], reason: str) -> None:
    verdict = soaked(last, **more)
    assert verdict.word == "unhealthy"
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]


@pytest.mark.parametrize(
    ("last", "more", "note"),
    [
        (
            status(pipeline(10), cloud=LinkReport(state="connecting", reason="no route to host")),
            {},
            "the cloud is not reached (no route to host); it was before the update, but a network",
        ),
        (
            status(pipeline(10), identity=IdentityReport(state="unreachable", level="tpm", reason="timed out")),
            {},
            "identity unreachable: timed out",
        ),
        (
            status(pipeline(0, state="degraded", source_state="lost", last_error="no route")),
            {"network_pipelines": frozenset({"door"})},
            "its source is across the network, which no image is blamed for",
        ),
        (status(pipeline(0)), {"cold": frozenset({"door"})}, "its source may be silent for longer than this"),
        (status(), {}, "pipeline door is configured no more"),
        (
            status(pipeline(10), outbox=OutboxReport(state="failed", epoch="e", disk_full=True)),
            {},
            "the disk of the outbox is full",
        ),
        (status(pipeline(10)), {"restarts": 1}, ""),
    ],
)
def test_an_image_stays_where_the_old_one_would_be_no_better_off(
    last: GatewayStatus, more: dict[str, Any], note: str
) -> None:
    verdict = soaked(last, **more)
    assert verdict.reasons == ()
    assert note in " ".join(verdict.notes)


def test_without_the_rule_for_networks_a_dead_switch_would_take_every_update_back() -> None:
    """The control: the same silence, of a source that is plugged into the device."""
    last = status(pipeline(0, state="degraded", source_state="lost"))
    assert soaked(last, network_pipelines=frozenset({"door"})).word == "healthy"
    assert soaked(last).word == "unhealthy"


@pytest.mark.parametrize(
    ("before", "last"),
    [
        (Baseline(vault_ready=False), status(pipeline(10), vault=VaultReport(level="tpm", problems=["no TPM"]))),
        (Baseline(), status(pipeline(0))),
        (Baseline(failed_components=["metrics"]), status(pipeline(10), components={"metrics": "port taken"})),
        (Baseline(), status(pipeline(10), identity=IdentityReport(state="refused", level="tpm"))),
    ],
)
def test_what_was_not_well_before_does_not_keep_an_update_out(before: Baseline, last: GatewayStatus) -> None:
    verdict = soaked(last, before)
    assert verdict.reasons == ()
    assert verdict.notes


def test_what_the_network_kept_away_is_asked_of_the_next_image_again() -> None:
    last = status(
        pipeline(0, source_state="lost"),
        identity=IdentityReport(state="unreachable", level="tpm"),
        cloud=LinkReport(state="connecting"),
    )
    verdict = soaked(last, network_pipelines=frozenset({"door"}))
    assert verdict.now.progressing == ["door"]
    assert verdict.now.identity_valid


def test_a_gateway_that_never_answers_is_unhealthy() -> None:
    verdict = judge([look(300, None)], Device(GOOD), "2")
    assert verdict.reasons == ("the gateway does not answer: no gateway is running",)
    assert verdict.now == GOOD


def test_a_gateway_that_stops_answering_is_unhealthy() -> None:
    looks = [look(0, status(pipeline(0))), look(30, status(pipeline(5))), look(60, None)]
    assert "the gateway has stopped answering" in judge(looks, Device(GOOD), "2").reasons[0]


def test_restarts_are_counted_also_where_systemd_cannot_be_asked() -> None:
    looks = [look(at, status(pipeline(at), pid=at), restarts=None) for at in (1, 2, 3)]
    assert "restarted 2 times" in judge(looks, Device(GOOD), "2").reasons[0]


def test_a_configuration_that_this_image_cannot_use_is_told_with_its_place() -> None:
    verdict = judge([], Device(GOOD, config_errors=("gateway.yaml:3:1: error: unknown key `x`",)), "2")
    assert verdict.reasons[0] == "this image cannot use gateway.yaml: gateway.yaml:3:1: error: unknown key `x`"


def test_what_was_wrong_for_a_moment_at_the_end_takes_no_image_back() -> None:
    slow = status(pipeline(99), vault=VaultReport(level="tpm", problems=["the TPM did not answer within 10 s"]))
    looks = [look(at, status(pipeline(at))) for at in range(12)]
    once = judge([*looks, look(12, slow)], Device(GOOD), "2")
    assert once.reasons == ()
    assert "not all the time" in once.notes[0]
    assert judge([*looks, *(look(at, slow) for at in range(12, 16))], Device(GOOD), "2").reasons


def test_a_pipeline_that_failed_on_the_first_boot_of_all_counts() -> None:
    assert soaked(status(pipeline(0, state="failed")), None).word == "unhealthy"
    assert soaked(status(pipeline(0)), None).word == "healthy"


@pytest.mark.parametrize(("device", "remote"), [("rtsp://a/1", True), ("tcp://a:502", True), ("/dev/video0", False)])
def test_addresses_are_across_the_network_and_devices_are_not(device: str, remote: bool) -> None:
    assert is_remote(device) is remote
