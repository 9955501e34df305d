"""Rollouts in JSON, the same on the command line and over HTTP. Pure."""

from typing import Any

import msgspec

from cloud_bridge.rollout.comparison import Comparison
from cloud_bridge.rollout.records import Rollout, Transition
from cloud_bridge.rollout.service import Report
from gateway.wire.messages import kind_of
from gateway.wire.times import rfc3339


def rollout_plain(one: Rollout) -> dict[str, Any]:
    """Put a rollout for JSON."""
    plan = one.plan
    return {
        "id": one.id,
        "phase": one.phase,
        "reason": one.reason,
        "kind": kind_of(plan.pipeline),
        "pipeline": plan.pipeline,
        "release": None if plan.release is None else str(plan.release),
        "baseline": None if plan.baseline is None else str(plan.baseline),
        "arms": [{"labels": arm.labels, "release": str(arm.release)} for arm in plan.arms],
        "waves": [str(wave) for wave in plan.waves],
        "wave": one.wave,
        "soak_seconds": plan.soak_seconds,
        "on_halt": plan.on_halt,
        "gates": msgspec.to_builtins(plan.thresholds),
        "looks": one.seen.looks,
        "findings": msgspec.to_builtins(one.findings),
        "created_at": rfc3339(one.created_ns),
        "updated_at": rfc3339(one.updated_ns),
    }


def transition_plain(one: Transition) -> dict[str, Any]:
    """Put a line of the history for JSON."""
    return {
        "number": one.number,
        "at": rfc3339(one.at_ns),
        "kind": one.kind,
        "wave": one.wave,
        "who": one.who,
        "detail": one.detail,
    }


def report_plain(report: Report, comparison: Comparison | None = None) -> dict[str, Any]:
    """Put the state of a rollout for JSON."""
    plain = rollout_plain(report.rollout)
    plain["waves"] = [
        {"wave": one.name, "state": one.state, "devices": one.devices, "standings": dict(one.standings)}
        for one in report.waves
    ]
    plain["devices"] = [
        {
            "gateway": one.member.gateway,
            "wave": one.member.wave,
            "release": str(one.member.release),
            "previous": None if one.member.previous is None else str(one.member.previous),
            "token": one.member.token,
            "standing": one.standing,
            "code": one.code,
            "reason": one.reason,
        }
        for one in report.stands
    ]
    plain["returned"] = report.returned
    plain["recovered"] = report.recovered
    plain["awaiting"] = report.awaiting
    plain["history"] = [transition_plain(one) for one in report.history]
    if comparison is not None:
        plain["comparison"] = comparison_plain(comparison)
    return plain


def comparison_plain(comparison: Comparison) -> dict[str, Any]:
    """Put releases side by side for JSON."""
    return {
        "arms": [{**msgspec.to_builtins(arm), "release": str(arm.release)} for arm in comparison.arms],
        "distances": list(comparison.distances),
    }
