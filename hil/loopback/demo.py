"""`make demo`: the whole system on this machine, on real input, until Ctrl-C or for DURATION seconds.

The gateway has a TPM (swtpm), enrols, and reaches the cloud's broker with a certificate; its models lie sealed. While
it runs, a better release of a model is rolled out to it, and then a bad one, which it takes back by itself.

Progress goes to stderr; the last line of stdout is one JSON document. The exit status is 0 only if nothing
was lost, nothing is there twice, and every pipeline produced inferences.
"""

import json
import math
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from gateway.vault.store import SealedStore
from hil.loopback.assets.clip import CLIPS
from hil.loopback.children import RigError
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.tally import Tally, tally_of
from hil.loopback.updates import Background, Updates

VAR = Path("var/demo")
_COMMANDS = Path(sys.executable).parent
_REPORT_EVERY_SECONDS = 5.0
_SECURED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person who runs the demo asked for."""

    camera: str
    speed: float
    duration_seconds: float | None


def sources_for(wishes: Wishes, data: Path) -> dict[str, Any]:
    """Build the sources: a camera or its clip, two recordings with faults in them, and this machine."""
    return {
        "entrance": _camera(wishes.camera, data),
        "motor": {
            "type": "replay",
            "file": str(data / "vibration.npz"),
            "array": "samples",
            "rate_hz": 3200.0,
            "speed": wishes.speed,
            "loop": True,
        },
        "boiler": {
            "type": "replay",
            "file": str(data / "process.csv"),
            "rate_hz": 1.0,
            # One row stands for five minutes; a hundred a second make a demo of three weeks.
            "speed": 100.0 * wishes.speed,
            "loop": True,
        },
        "machine": {
            "type": "health",
            "rate_hz": 10.0,
            "channels": ["load", "memory_used", "memory_pressure", "temperature"],
        },
    }


def _camera(wish: str, data: Path) -> dict[str, Any]:
    device = wish or next((str(node) for node in sorted(Path("/dev").glob("video*"))), "")
    if not device:
        clip = next((data / clip.file for clip in CLIPS if (data / clip.file).is_file()), data / CLIPS[0].file)
        return {"type": "replay", "file": str(clip), "loop": True}
    if Path(device).is_file():
        return {"type": "replay", "file": str(Path(device).resolve()), "loop": True}
    if "://" not in device and not Path(device).exists():
        hint = f"; did you mean CAMERA=/dev/video{device}?" if device.isdecimal() else ""
        raise click.UsageError(f"CAMERA={device}: there is no such device or file{hint}")
    return {"type": "camera", "device": device, "fps": 10.0}


def pipelines() -> dict[str, Any]:
    """Build the pipelines: what is looked for in each source."""
    interest = {"measure_every_seconds": 5.0}
    anomaly = {"name": "anomaly", "min_score": 0.5, "gone_seconds": 2.0, "hold_seconds": 0.0, "snapshot": True}
    return {
        "people": {
            "source": "entrance",
            "model": "person-vehicle-detector",
            "rules": [
                {
                    "name": "somebody",
                    "labels": ["Person", "Car", "Vehicle", "Bicycle", "Bus", "Truck", "Motorcycle"],
                    "min_score": 0.45,
                    "hysteresis": 0.1,
                    "gone_seconds": 2.0,
                    "snapshot": True,
                }
            ],
            "interest": {**interest, "snapshot_bytes_per_hour": 4 * 1024 * 1024},
        },
        "vibration": {
            "source": "motor",
            "model": "vibration-anomaly",
            "rules": [{**anomaly, "record_class": "critical"}],
            "interest": interest,
        },
        "temperature": {"source": "boiler", "model": "process-anomaly", "rules": [anomaly], "interest": interest},
        "machine": {
            "source": "machine",
            "model": "process-anomaly",
            "rules": [{**anomaly, "hold_seconds": 2.0}],
            "interest": interest,
        },
    }


def say(text: str) -> None:
    """Tell the person at the terminal."""
    click.echo(text, err=True)


def run(wishes: Wishes, directory: Path = VAR) -> int:
    """Run the demo; returns the exit status."""
    data = directory / "data"
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run_directory = (directory / "run").resolve()
    models = {"directories": [str((directory / "models").resolve())]}
    sources = sources_for(wishes, data.resolve())
    updates = Updates(run_directory / "updates")
    gateway = {"models": models, **updates.gateway_settings()}
    with Rig(
        run_directory, sources, pipelines(), gateway=gateway, bridge=updates.bridge_settings(), security="tpm"
    ) as rig:
        _introduce(rig)
        say("==> preparing a TPM, an approved boot state, certificates, a claim, a registry; then starting everything")
        rig.start(lambda what: say(f"    {what}"), before=updates.prepare)
        started = time.monotonic()
        _say_how_secured(rig, stop)
        say(f"==> running; open {rig.console_url}  (Ctrl-C stops)")
        say(f"    mosquitto_sub -h 127.0.0.1 -p {rig.site_port} -t 'sluice/v1/+/event/#'")
        enough = threading.Event()
        with Background(lambda: updates.run(rig, enough.is_set, say)) as updating:
            try:
                _watch(rig, stop, started, wishes.duration_seconds, updating)
            finally:
                enough.set()
        security = security_of(rig)
        say("==> stopping; the outbox drains first")
        ran_seconds = time.monotonic() - started
        rig.gateway.stop(60.0)
        last = rig.last_run()
        counts = _settled(rig)
        rig.stop()
    result = {**summary(last, counts, ran_seconds), **updates.summary(), "security": security}
    silent = [name for name, pipeline in last["pipelines"].items() if not pipeline["inferences"]]
    for name in silent:
        reason = last["pipelines"][name].get("last_error") or "no samples"
        say(f"pipeline {name} made no inference: {reason} (log: {rig.gateway.log})")
    if counts.lost or counts.duplicates:
        say(f"lost {counts.lost}, duplicates {counts.duplicates}: see {rig.directory}")
    click.echo(json.dumps(result))
    return 1 if silent or counts.lost or counts.duplicates else 0


def _introduce(rig: Rig) -> None:
    """Say what looks at what."""
    sources = rig.gateway_settings["sources"]
    for name, pipeline in rig.gateway_settings["pipelines"].items():
        source = sources[pipeline["source"]]
        seen = source.get("file") or source.get("device") or "this machine"
        say(f"    {name}: {seen} through {pipeline['model']}")
    say("    person-vehicle-detector: SSD MobileNet v2 for Open Images V4, from MediaPipe (Apache-2.0), made int8 here")


def _say_how_secured(rig: Rig, stop: threading.Event) -> None:
    """Wait until the gateway has enrolled and its models are sealed and loaded, and say so.

    Raises:
        RigError: it does not get that far.
    """
    deadline = time.monotonic() + _SECURED_SECONDS
    while not stop.wait(0.1):
        security, status = security_of(rig), rig.gateway_status() or {}
        if security["certificate_until"] and security["boot_state"] and not _loading(status):
            break
        if time.monotonic() > deadline:
            why = (rig.gateway_identity() or {}).get("reason") or "see the log"
            raise RigError(f"the gateway did not enrol and seal its models: {why}\n{rig.gateway.tail()}")
    else:
        return
    say(f"    enrolled: certificate until {security['certificate_until']}, renewed half-way by the TPM's word")
    say(f"    attested: boot state {security['boot_state']} is approved")
    say(f"    sealed under the TPM: {', '.join(security['sealed_models'])}")
    say(f"    {_shown(_COMMANDS)}/gateway vault status --config {_shown(rig.gateway_file)}")
    say(f"    {_shown(_COMMANDS)}/cloud-bridge identity devices --config {_shown(rig.bridge_file)}")


def _loading(status: dict[str, Any]) -> bool:
    """Tell whether a pipeline has not made up its mind yet; one that has failed has."""
    found = status.get("pipelines", [])
    return not found or any(pipeline["state"] == "starting" for pipeline in found)


def security_of(rig: Rig) -> dict[str, Any]:
    """Return how the running gateway is secured, for the closing document."""
    identity = rig.gateway_identity() or {}
    left = identity.get("expires_in_seconds") or 0.0
    until = datetime.now(UTC) + timedelta(seconds=left)
    return {
        "level": identity.get("level") or "none",
        "boot_state": identity.get("boot_state", ""),
        "certificate_until": until.strftime("%Y-%m-%dT%H:%M:%SZ") if left > 0 else None,
        "renewals": max(0, identity.get("renewals", 0) - 1),  # the first of them was the enrolment
        "sealed_models": sorted(release.label for release in SealedStore(rig.state_directory / "models").releases()),
    }


def _shown(file: Path) -> Path:
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _watch(
    rig: Rig, stop: threading.Event, started: float, duration_seconds: float | None, updating: Background
) -> None:
    """Report every few seconds until it is time to stop.

    Raises:
        RigError: a process ended by itself, or an update was not carried out.
    """
    end = None if duration_seconds is None else started + duration_seconds
    while not stop.is_set():
        left = _REPORT_EVERY_SECONDS if end is None else end - time.monotonic()
        if left <= 0 or stop.wait(min(_REPORT_EVERY_SECONDS, left)):
            return
        for child in rig.children:
            if not child.running:
                raise RigError(f"{child.name} ended by itself; its output:\n{child.tail()}")
        _ = updating.ended
        status = rig.gateway_status()
        if status is not None:
            say(_progress_line(status, tally_of(rig), time.monotonic() - started))


def _progress_line(status: dict[str, Any], counts: Tally, seconds: float) -> str:
    parts = [
        f"{pipeline['pipeline']} {pipeline['inferences']} ({pipeline['inferences_per_second']:.1f}/s)"
        for pipeline in status["pipelines"]
    ]
    troubles = [
        f"\n          {pipeline['pipeline']}: {pipeline['last_error']}"
        for pipeline in status["pipelines"]
        if pipeline.get("last_error") and pipeline["state"] != "running"
    ]
    return (
        f"    {seconds:5.0f} s  inferences: {', '.join(parts)};  anomalies {counts.anomalies};"
        f"  records {counts.committed}/{counts.enqueued} in the cloud{''.join(troubles)}"
    )


def _settled(rig: Rig) -> Tally:
    """Wait until the bridge has what the outbox gave out, then count."""
    try:
        eventually(lambda: tally_of(rig).lost == 0, "the bridge has everything", 20.0)
    except RigError as error:
        say(str(error))
    return tally_of(rig)


def summary(last: dict[str, Any], counts: Tally, ran_seconds: float) -> dict[str, Any]:
    """Build the closing document."""
    pipelines_ran = last["pipelines"].values()
    raw = sum(pipeline["raw_bytes"] for pipeline in pipelines_ran)
    sent = sum(pipeline["sent_bytes"] for pipeline in pipelines_ran)
    return {
        "gateway": GATEWAY_ID,
        "seconds": round(ran_seconds, 1),
        "frames": sum(pipeline["frames"] for pipeline in pipelines_ran),
        "windows": sum(pipeline["windows"] for pipeline in pipelines_ran),
        "inferences": sum(pipeline["inferences"] for pipeline in pipelines_ran),
        "anomalies": counts.anomalies,
        "records_enqueued": counts.enqueued,
        "records_committed": counts.committed,
        "waiting": counts.waiting,
        "evicted": counts.evicted,
        "lost": counts.lost + counts.waiting,
        "duplicates": counts.duplicates,
        "stayed_at_edge": round(1 - sent / raw, 4) if raw else None,
        "pipelines": {
            name: {key: pipeline[key] for key in ("inferences", "events", "backend", "model")}
            for name, pipeline in last["pipelines"].items()
        },
    }


class Positive(click.ParamType[float]):
    """A finite number above 0."""

    name = "number"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Turn what was typed, or stands in the environment, into a number."""
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < math.inf:
            self.fail(f"{value!r} must be a number above 0, e.g. 10", param, ctx)
        return number


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--camera", envvar="CAMERA", show_envvar=True, default="", help="A device, URL or file.  [default: a clip]"
)
@click.option("--speed", envvar="SPEED", show_envvar=True, type=Positive(), default=1.0, help="Of the recordings.")
@click.option(
    "--duration", envvar="DURATION", show_envvar=True, type=Positive(), help="Seconds.  [default: until Ctrl-C]"
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=VAR,
    show_default=True,
    help="Where `python -m hil.loopback.fetch` has put clip and models; what the demo writes goes there, too.",
)
def main(camera: str, speed: float, duration: float | None, directory: Path) -> None:
    """Run brokers, cloud bridge and a gateway with a TPM on this machine."""
    try:
        sys.exit(run(Wishes(camera=camera, speed=speed, duration_seconds=duration), directory))
    except RigError as error:
        say(f"demo: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
