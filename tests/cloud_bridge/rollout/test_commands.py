"""`cloud-bridge fleet` and `cloud-bridge rollout`, as an operator types them, beside a store that is there."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_bridge.cli import main
from cloud_bridge.commands.rollout_words import report_lines
from cloud_bridge.config import Rollout as Defaults
from cloud_bridge.rollout.comparison import ArmSummary, Comparison
from cloud_bridge.rollout.plan import Member, Stand
from cloud_bridge.rollout.records import Rollout
from cloud_bridge.rollout.service import Report, plan_from
from cloud_bridge.rollout.waves import waves_of
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Intake
from gateway.wire.messages import Availability, PipelineStatus
from tests.cloud_bridge.rollout.kit import NEW, OLD
from tests.simulators.reports import report
from tests.simulators.samples import AT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    store = SqliteStore(tmp_path / "bridge.db")
    status = PipelineStatus(pipeline="camera", state="running", source_state="streaming", at=AT, model=OLD.ref)
    names = [f"gw-{number}" for number in range(4)]
    store.ingest(
        Intake(
            1,
            availability=tuple((name, Availability(state="online", at=AT)) for name in names),
            statuses=tuple((name, status) for name in names),
        )
    )
    store.close()
    file = tmp_path / "bridge.yaml"
    file.write_text(f"store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}\nrollout: {{enabled: true}}\n")
    return file


def run(config: Path, *words: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, [*words, "--config", str(config)])
    assert result.exit_code == status, result.output
    return result.output


def test_devices_are_labelled_listed_and_unlabelled(config: Path) -> None:
    assert run(config, "fleet", "label", "gw-1", "site=berlin", "ring=canary") == "gw-1 [ring=canary site=berlin]\n"
    assert run(config, "fleet", "label", "gw-1", "ring-") == "gw-1 [site=berlin]\n"
    listed = run(config, "fleet", "list", "--label", "site=berlin", "--json")
    plain = json.loads(listed)
    assert (plain["gateway"], plain["labels"]) == ("gw-1", {"site": "berlin"})
    assert plain["pipelines"] == {"camera": "detector@1.0.0"}
    assert len(run(config, "fleet", "list").splitlines()) == 4


def test_what_a_device_runs_is_listed_where_it_does_not_publish_status(config: Path) -> None:
    report(config.parent, "gw-9", "door", NEW.ref)
    report(config.parent, "gw-1", "camera", NEW.ref)  # newer than its status, which says OLD
    assert "gw-9 unknown [] door: detector@1.1.0" in run(config, "fleet", "list").splitlines()
    listed = [json.loads(line) for line in run(config, "fleet", "list", "--json").splitlines()]
    runs = {plain["gateway"]: plain["pipelines"] for plain in listed}
    assert runs["gw-9"] == {"door": "detector@1.1.0"}
    assert (runs["gw-0"], runs["gw-1"]) == ({"camera": "detector@1.0.0"}, {"camera": "detector@1.1.0"})


def test_slips_of_the_hand_are_told(config: Path) -> None:
    told = run(config, "fleet", "label", "gw-one", "site=berlin")
    assert "no gateway gw-one was heard of yet; the labels wait for it" in told
    assert "heard of" not in run(config, "fleet", "label", "gw-1", "site=berlin")
    create = ("rollout", "create", "--model", "detector@1.1.0")
    assert "no pipeline is named" in run(config, *create, status=1)
    wave = (*create, "--pipeline", "camera", "--waves")
    assert "is no wave" in run(config, *wave, "\N{FULLWIDTH DIGIT ONE}", status=1)
    assert "is no wave" in run(config, *wave, "\N{ARABIC-INDIC DIGIT ONE}%", status=1)


def test_features_are_switched_by_label(config: Path) -> None:
    run(config, "fleet", "label", "gw-1", "site=a")
    assert run(config, "fleet", "feature", "snapshots=on", "--label", "site=a").startswith("told to 1 device, ")
    assert "+snapshots" in run(config, "fleet", "list")
    assert "no device is labelled" in run(config, "fleet", "feature", "snapshots=on", "--label", "site=b", status=1)
    assert "is no switch" in run(config, "fleet", "feature", "snapshots=maybe", "--gateway", "gw-1", status=1)


def test_a_device_that_is_gone_is_forgotten_and_one_that_is_there_is_not(config: Path) -> None:
    run(config, "fleet", "label", "gw-1", "site=a")
    assert "is connected; to forget it all the same, give --force" in run(config, "fleet", "forget", "gw-1", status=1)
    store = SqliteStore(config.parent / "bridge.db")
    offline = Availability(state="offline", at=AT)
    store.ingest(Intake(1, availability=(("gw-1", offline), ("gw-2", offline))))
    store.ingest(Intake(time.time_ns(), seen=frozenset({"gw-2"})))
    store.close()
    assert "was heard of 0.0 h ago" in run(config, "fleet", "forget", "gw-2", status=1)
    assert run(config, "fleet", "forget", "gw-1") == "gw-1 is forgotten; its records stay\n"
    assert json.loads(run(config, "fleet", "forget", "gw-2", "--force", "--json")) == {
        "gateway": "gw-2",
        "forgotten": True,
    }
    assert "no gateway gw-1 was heard of" in run(config, "fleet", "forget", "gw-1", status=1)
    listed = run(config, "fleet", "list").splitlines()
    assert [line.split()[0] for line in listed] == ["gw-0", "gw-3"]


def test_a_rollout_is_created_looked_at_and_moved(config: Path) -> None:
    words = (
        "--model",
        "detector@1.1.0",
        "--pipeline",
        "camera",
        "--waves",
        "1, site=a, rest",
        "--soak",
        "30m",
        "--json",
    )
    made = json.loads(run(config, "rollout", "create", *words))
    assert (made["phase"], made["waves"], made["soak_seconds"]) == ("running", ["1", "site=a", "rest"], 1800.0)
    assert json.loads(run(config, "rollout", "list", "--json"))["id"] == made["id"]
    assert json.loads(run(config, "rollout", "pause", made["id"], "--reason", "Friday", "--json"))["phase"] == "paused"
    assert run(config, "rollout", "resume", made["id"][:6]).startswith(f"{made['id']} running")
    status = json.loads(run(config, "rollout", "status", made["id"], "--json"))
    assert [one["kind"] for one in status["history"]] == ["created", "paused", "resumed"]
    assert status["history"][1]["detail"] == "Friday"
    assert "wave site=a: waiting" in run(config, "rollout", "status", made["id"])
    assert "gates: unjudged, devices of wave 1 have not told" in run(config, "rollout", "status", made["id"])
    assert json.loads(run(config, "rollout", "abort", made["id"], "--json"))["phase"] == "aborted"
    assert "gates: unjudged, devices of wave 1 had not told" in run(config, "rollout", "status", made["id"])
    blunt = json.loads(run(config, "rollout", "create", *words, "--no-gates"))
    assert "gates: none" in run(config, "rollout", "status", blunt["id"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "detector", "--pipeline", "camera"), "NAME@VERSION"),
        (("--pipeline", "camera"), "needs a release"),
        (("--model", "detector@1.1.0", "--pipeline", "camera", "--waves", "rest, 1"), "put it last"),
        (("--model", "detector@1.1.0", "--pipeline", "motor"), "no gateway has told"),
        (("--ab", "detector@1.1.0", "--pipeline", "camera"), "no label"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused_with_the_remedy(config: Path, words: tuple[str, ...], said: str) -> None:
    assert said in run(config, "rollout", "create", *words, status=1)


@pytest.mark.parametrize("share", ["nan", "inf", "-0.1", "1.1"])
def test_a_share_that_is_none_does_not_become_a_rollout_that_nobody_can_read(config: Path, share: str) -> None:
    words = ("--model", "detector@1.1.0", "--pipeline", "camera")
    assert "max-failing-share" in run(config, "rollout", "create", *words, "--max-failing-share", share, status=2)
    assert run(config, "rollout", "list") == ""
    run(config, "rollout", "create", *words, "--max-failing-share", "0.1")  # the control
    assert "running" in run(config, "rollout", "list")


def test_a_bridge_that_gives_no_rollouts_says_so(config: Path) -> None:
    config.write_text(config.read_text().replace("enabled: true", "enabled: false"))
    words = ("--model", "detector@1.1.0", "--pipeline", "camera")
    assert "rollouts are off" in run(config, "rollout", "create", *words, status=1)


def test_an_id_that_is_none_is_refused(config: Path) -> None:
    assert "no rollout has an id" in run(config, "rollout", "status", "ffff", status=1)


def test_why_a_device_waits_is_told_beside_those_that_fail() -> None:
    plan = plan_from(Defaults(), pipeline="camera", release=NEW, waves=waves_of("rest"))
    rollout = Rollout("3f9c", 0, 0, "running", "", 1, plan)
    stands = (
        Stand(Member("gw-1", 0, NEW, None, 0, 0, 1), "updating", "waiting", "slower than ota.min_bytes_per_second"),
        Stand(Member("gw-2", 0, NEW, None, 0, 0, 1), "updating", "fetching", ""),
        Stand(Member("gw-3", 0, NEW, None, 0, 0, 1), "failing", "latency", "too late"),
    )
    lines = report_lines(Report(rollout, (), stands, 0, 0, ()))
    assert "  gw-1 updating (waiting): slower than ota.min_bytes_per_second" in lines
    assert "  gw-3 failing (latency): too late" in lines
    assert not any("gw-2" in line for line in lines), "the control: who is busy as expected is counted, not named"


def test_a_slow_release_has_its_latency_in_milliseconds_not_in_powers_of_ten() -> None:
    plan = plan_from(Defaults(), pipeline="camera", release=NEW, waves=waves_of("rest"))
    rollout = Rollout("3f9c", 0, 0, "running", "", 1, plan)
    arm = ArmSummary(NEW, 2, 7, 1.5, 0.25, 4000.0, 5177.3, 0.0)
    lines = report_lines(Report(rollout, (), (), 0, 0, ()), Comparison((arm,), ()))
    assert "  detector@1.1.0: 2 devices, 7 events in 1.5 h, mean score 0.250, p95 5180 ms" in lines
