"""Rollouts in words, and devices in JSON and in words."""

from typing import Any

import msgspec

from cloud_bridge.rollout.comparison import Comparison
from cloud_bridge.rollout.fleet import Fleet
from cloud_bridge.rollout.records import Rollout
from cloud_bridge.rollout.service import Report
from gateway.wire.plain import in_figures, so_many
from gateway.wire.plain import plain as shown
from gateway.wire.times import rfc3339


def rollout_line(one: Rollout) -> str:
    """Put a rollout for people."""
    what = ", ".join(
        ([str(one.plan.release)] if one.plan.release else []) + [str(arm.release) for arm in one.plan.arms]
    )
    wave = f"wave {one.wave + 1} of {len(one.plan.waves)} ({one.plan.waves[one.wave]})"
    return f"{one.id} {one.phase}: {what} for {one.plan.pipeline}, {wave}; {one.reason}"


def report_lines(report: Report, comparison: Comparison | None = None) -> list[str]:
    """Put the state of a rollout for people."""
    lines = [rollout_line(report.rollout)]
    for wave in report.waves:
        counted = ", ".join(f"{count} {word}" for word, count in sorted(wave.standings.items()))
        lines.append(
            f"  wave {wave.name}: {wave.state}, {so_many(wave.devices, 'device')}{': ' + counted if counted else ''}"
        )
    if report.returned:
        again = f"  {report.recovered} of {so_many(report.returned, 'device')} run again what they had before"
        if report.awaiting:
            again += f"; {report.awaiting} of these had nothing, and wait for a release again"
        lines.append(again)
    lines += _gates(report)
    for stand in report.stands:
        if stand.standing in {"failing", "left"} or (stand.standing == "updating" and stand.reason):
            lines.append(f"  {stand.member.gateway} {stand.standing} ({stand.code}): {stand.reason}")
    if comparison is not None:
        for arm in comparison.arms:
            score = "no score" if arm.mean_score is None else f"mean score {arm.mean_score:.3f}"
            late = "" if arm.latency_p95_ms is None else f", p95 {in_figures(arm.latency_p95_ms)} ms"
            lines.append(
                f"  {arm.release}: {so_many(arm.devices, 'device')}, {so_many(arm.events, 'event')} in"
                f" {arm.hours:.1f} h, {score}{late}"
            )
    for one in report.history:
        lines.append(f"  {rfc3339(one.at_ns)[:19]}Z {one.kind} ({one.who}): {one.detail}")
    return [shown(line) for line in lines]


def _gates(report: Report) -> list[str]:
    """Put what the gates found of the present wave; it may be over before there was anything to look at."""
    rollout = report.rollout
    if rollout.findings:
        looks = rollout.seen.looks
        return [f"  gate {one.gate}: {one.state} at look {looks}, {one.text}" for one in rollout.findings]
    if not rollout.plan.thresholds.enabled:
        return ["  gates: none, as was asked for (--no-gates)"]
    wave = rollout.plan.waves[rollout.wave]
    if rollout.phase in {"running", "paused"}:
        return [f"  gates: unjudged, devices of wave {wave} have not told enough for a look yet"]
    return [f"  gates: unjudged, devices of wave {wave} had not told enough for a look"]


def device_plain(fleet: Fleet, gateway: str) -> dict[str, Any]:
    """Put a device with its twins for JSON."""
    state, desired, reported = fleet.gateways.get(gateway), fleet.desired.get(gateway), fleet.reported.get(gateway)
    return {
        "gateway": gateway,
        "state": "unknown" if state is None else state.state,
        "seen_at": None if state is None else rfc3339(state.seen_at_ns),
        "version": "" if state is None else state.version,
        "labels": dict(fleet.labels_of(gateway)),
        "pipelines": {
            pipeline: None if model is None else f"{model.name}@{model.version}"
            for pipeline, model in sorted(fleet.models_of(gateway).items())
        },
        "desired": None if desired is None else msgspec.to_builtins(desired.message),
        "reported": None if reported is None else msgspec.to_builtins(reported.twin),
    }


def device_line(plain: dict[str, Any]) -> str:
    """Put a device for people."""
    labels = " ".join(f"{key}={value}" for key, value in plain["labels"].items())
    awaiting = (plain["reported"] or {}).get("awaiting", ())
    runs = ", ".join(
        f"{pipeline}: {'waits for a release' if pipeline in awaiting else model or 'no model'}"
        for pipeline, model in plain["pipelines"].items()
    )
    features = ((plain["desired"] or {}).get("features")) or {}
    flags = "".join(f" {'+' if on else '-'}{name}" for name, on in sorted(features.items()))
    return f"{plain['gateway']} {plain['state']} [{labels}] {runs}{flags}"
