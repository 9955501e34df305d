"""Models over the air, whole: registry, rollout, broker and gateway are real, and so is what a bad release does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hil.loopback.children import RigError, free_port
from hil.loopback.rig import Rig, eventually
from hil.loopback.updates import BAD, BETTER, MODEL, PIPELINE, Updates
from tests.e2e.flow import settle
from tests.e2e.security.conftest import Secured


def site_with_updates(
    folder: Path, secured: Secured, updates: Updates, *, security: str = "software", **gateway: Any
) -> Rig:
    file = folder / "process.csv"
    noise = np.random.default_rng(5).normal(0.0, 0.3, 20_000)
    file.write_text("value\n" + "\n".join(f"{20 + value:.4f}" for value in noise) + "\n")
    source = {"type": "replay", "file": str(file), "rate_hz": 1.0, "speed": 200.0, "loop": True}
    rule = {"name": "anomaly", "min_score": 0.5}
    return secured(
        sources={"boiler": source},
        pipelines={
            PIPELINE: {"source": "boiler", "model": MODEL, "rules": [rule], "interest": {"measure_every_seconds": 1.0}}
        },
        gateway={**updates.gateway_settings(), **gateway},
        bridge=updates.bridge_settings(),
        security=security,
    )


def test_a_better_release_stays_and_a_bad_one_is_taken_back_without_a_lost_frame(
    tmp_path: Path, secured: Secured
) -> None:
    updates = Updates(tmp_path / "updates")
    rig = site_with_updates(tmp_path, secured, updates)
    rig.start(before=updates.prepare)
    updates.run(rig, lambda: False, print)
    assert updates.ended == {BETTER: ("running", "done"), BAD: ("reverted", "halted")}
    summary = updates.summary()
    assert (summary["updates"], summary["rollbacks"], summary["frames_lost_in_swaps"]) == (1, 1, 0)
    assert summary["max_swap_gap_ms"] is not None
    assert serving(rig) == BETTER
    settle(rig)


def test_control_without_a_trial_worth_the_name_the_bad_release_stays(tmp_path: Path, secured: Secured) -> None:
    updates = Updates(tmp_path / "updates")
    rig = site_with_updates(tmp_path, secured, updates)
    rig.gateway_settings["ota"]["trial"] |= {"drift_effect": 1.0, "drift_significance": 1e-300}
    rig.bridge_settings["rollout"] |= {"max_anomaly_ratio": 1e9, "min_effect": 1.0}
    rig.write()
    rig.start(before=updates.prepare)
    updates.run(rig, lambda: False, print)
    assert updates.ended[BAD] == ("running", "done")
    assert serving(rig) == BAD


def test_a_root_that_signed_nothing_of_it_lets_no_release_in(tmp_path: Path, secured: Secured) -> None:
    updates, other = Updates(tmp_path / "updates"), Updates(tmp_path / "other")
    rig = site_with_updates(tmp_path, secured, updates)

    def trust_another(made: Rig) -> None:
        updates.prepare(made)
        strange = site_with_updates(tmp_path, secured, other)
        strange.prepare()
        other.prepare(strange)
        (updates.directory / "trusted-root.json").write_bytes((other.directory / "trusted-root.json").read_bytes())

    rig.start(before=trust_another)
    with pytest.raises(RigError, match="came to no end"):
        updates.run(rig, lambda: False, print, seconds=12.0)
    assert serving(rig) == "1.0.0"
    assert (rig.gateway_updates() or {})["repository_problem"]


def on_the_device(rig: Rig, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway", "ota", *words, "--config", str(rig.gateway_file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_release_from_a_stick_runs_where_a_person_says_so_though_the_registry_is_out_of_reach(
    tmp_path: Path, secured: Secured
) -> None:
    updates = Updates(tmp_path / "updates")
    rig = site_with_updates(tmp_path, secured, updates)
    rig.gateway_settings["ota"]["url"] = f"https://127.0.0.1:{free_port()}"
    rig.write()
    rig.start(before=updates.prepare)
    updates.offer(rig, BETTER)
    assert rig.site is not None
    stick = tmp_path / "stick"
    rig.site.in_cloud("registry", "export", str(stick))
    eventually(lambda: serving(rig) == "1.0.0", "what was shipped runs")

    too_early = on_the_device(rig, "install", PIPELINE, f"{MODEL}@{BETTER}", "--wait", "1")
    assert too_early.returncode == 1
    assert "a refresh or an import brings it" in too_early.stderr
    brought = on_the_device(rig, "import", str(stick), f"{MODEL}@{BETTER}")
    assert brought.returncode == 0, brought.stderr
    assert "[debug" not in brought.stdout + brought.stderr
    done = on_the_device(rig, "install", PIPELINE, f"{MODEL}@{BETTER}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert f"pipeline {PIPELINE} runs {MODEL}@{BETTER}" in done.stdout
    assert serving(rig) == BETTER

    no = on_the_device(rig, "install", "cellar", f"{MODEL}@{BETTER}")
    assert (no.returncode, "there is no pipeline 'cellar'" in no.stderr) == (1, True)


def serving(rig: Rig) -> str:
    """Give the version that answers; an empty one while the pipeline or the gateway still starts."""
    found = (rig.gateway_updates() or {}).get("serving", {}).get(PIPELINE)
    return "" if found is None else str(found["version"])
