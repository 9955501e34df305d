"""The device: pipeline efficiency, added latency, start-up, memory."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from ai_edge_litert.interpreter import Interpreter
from paho.mqtt.enums import CallbackAPIVersion

from gateway.config import Outbox as OutboxSettings
from gateway.config import Pipeline as PipelineSettings
from gateway.config import ReplaySource, Rule
from gateway.decide.decider import Decider, Origin
from gateway.inference.bundle import ReleaseStore
from gateway.inference.model import Model
from gateway.inference.plain import open_plain
from gateway.inference.select import load_model
from gateway.outbox.store import Outbox
from gateway.pipeline import Pipeline
from gateway.preprocess.preparation import preparation_for
from gateway.sources.base import open_source
from gateway.surroundings import Surroundings
from gateway.values import Entry, Inference, Receipt, Window
from gateway.wire.messages import Event, decode
from hil.loopback.demo import Wishes, sources_for
from hil.loopback.demo import pipelines as demo_pipelines
from hil.loopback.rig import Rig, eventually
from tests.bench.figures import alternate, percentiles
from tests.bench.table import row

DEMO = Path("var/demo")
CLIP = DEMO / "data" / "vtest.avi"
FRAMES = 150


class Quiet:
    """Instruments that only remember latencies."""

    def __init__(self) -> None:
        self.latencies: list[float] = []

    def captured(self, pipeline: str, count: int) -> None: ...

    def inferred(self, pipeline: str, inference: Inference, latency_seconds: float, batch_fill: float) -> None:
        self.latencies.append(latency_seconds)

    def sent(self, pipeline: str, raw_bytes: int, sent_bytes: int) -> None: ...

    def told(self, pipeline: str, event: Event) -> None: ...


def load(settings: PipelineSettings) -> Model:
    """Load the model of a pipeline as the daemon does."""
    return load_model(ReleaseStore([DEMO / "models"]), settings, preparation_for, open_plain)


def surroundings(
    source: ReplaySource, settings: PipelineSettings, outbox: Outbox, publish: Callable[[Sequence[Entry]], None]
) -> Surroundings:
    """Build what a pipeline needs, with a real outbox and no network."""
    ids = count()

    def submit(entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        outbox.submit(entries, done)

    return Surroundings(
        gateway="bench",
        time_zone=UTC,
        open_source=lambda: open_source(settings.source, source),
        load_model=lambda: load(settings),
        submit=submit,
        publish=publish,
        instruments=Quiet(),
        new_id=lambda _: f"{next(ids):016x}",
        wall_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
    )


def _camera() -> PipelineSettings:
    rule = Rule(name="somebody", labels=["Person"], min_score=0.45, snapshot=True)
    return PipelineSettings(source="clip", model="person-vehicle-detector", rules=[rule])


def _needs_assets() -> dict[str, Any] | None:
    if CLIP.exists():
        return None
    return {"skipped": f"{CLIP} is not there; `make demo DURATION=1` fetches it"}


def pipeline_efficiency() -> dict[str, Any]:
    """Frames a second through source, preprocess, inference, decide and outbox, over a bare loop of the same work."""
    missing = _needs_assets()
    if missing:
        return missing
    model = load(_camera())
    with tempfile.TemporaryDirectory() as directory:
        clip = Path(directory) / "clip.avi"
        _cut(CLIP, clip, FRAMES)

        def ours() -> float:
            with_outbox = Outbox.open(Path(directory) / "outbox.db", OutboxSettings())
            settings = _camera()
            source = ReplaySource(file=clip, speed="max")
            pipeline = Pipeline("bench", settings, source, surroundings(source, settings, with_outbox, lambda _: None))
            started = time.perf_counter()
            pipeline.run()
            seconds = time.perf_counter() - started
            done = pipeline.totals().inferences
            with_outbox.close()
            if done != FRAMES:
                raise AssertionError(f"{done} of {FRAMES} frames came through")
            return done / seconds

        def bare() -> float:
            started = time.perf_counter()
            done = _bare_loop(clip, model)
            return done / (time.perf_counter() - started)

        ours()
        figures = alternate(ours, bare)
        what = "frames/s through source, preprocess, inference, rules and outbox, over a bare loop of the same work"
        told = f"**{figures['ratio']:.2f}** ({figures['ours']:.0f} against {figures['bare']:.0f} frames/s)"
        rows = [row(what, told, aim="≥ 0.90", met=figures["ratio"] >= 0.90)]
        return {"unit": "frames/s", "frames": FRAMES, **figures, "rows": rows}


def _cut(clip: Path, target: Path, frames: int) -> None:
    """Write the first frames of a clip as MJPEG."""
    reader = cv2.VideoCapture(str(clip))
    size = (int(reader.get(cv2.CAP_PROP_FRAME_WIDTH)), int(reader.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, size)
    for _ in range(frames):
        writer.write(reader.read()[1])
    writer.release()
    reader.release()


def _bare_loop(clip: Path, model: Model) -> int:
    """Decode, resize, convert, quantize, invoke: what anyone would write in ten lines."""
    interpreter = bare_interpreter(model)
    tensor = interpreter.get_input_details()[0]
    height, width = tensor["shape"][1:3]
    scale, zero = tensor["quantization"]
    reader = cv2.VideoCapture(str(clip))
    done = 0
    while True:
        there, image = reader.read()
        if not there:
            return done
        picture = cv2.cvtColor(cv2.resize(image, (int(width), int(height))), cv2.COLOR_BGR2RGB)
        values = picture.astype(np.float32) / 127.5 - 1.0
        if scale:
            values = np.clip(np.round(values / scale) + zero, -128, 127).astype(tensor["dtype"])
        interpreter.set_tensor(tensor["index"], values[np.newaxis])
        interpreter.invoke()
        for output in interpreter.get_output_details():
            interpreter.get_tensor(output["index"])
        done += 1


def bare_interpreter(model: Model) -> Any:
    """Make an interpreter of the same file, without any of ours around it."""
    interpreter = Interpreter(model_content=_weights(model), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _weights(model: Model) -> bytes:
    release = ReleaseStore([DEMO / "models"]).find(f"{model.ref.name}@{model.ref.version}")
    artefact = next(a for a in release.manifest.artefacts if a.sha256 == model.ref.digest)
    return (release.directory / artefact.file).read_bytes()


def decision_latency() -> dict[str, Any]:
    """What preprocessing, post-processing, rules and the hand-over to the outbox add to the bare invoke, in ms."""
    with tempfile.TemporaryDirectory() as directory:
        outbox = Outbox.open(Path(directory) / "outbox.db", OutboxSettings())
        settings = PipelineSettings(
            source="motor",
            model="vibration-anomaly",
            rules=[Rule(name="anomaly", min_score=0.5, update_seconds=0.001)],
        )
        model = load(settings)
        decider = Decider(Origin("bench", "p", UTC), settings, lambda ns: f"{ns:x}")
        noise = np.random.default_rng(1)
        added: list[float] = []
        for turn in range(3000):
            samples = noise.normal(0, 1 + turn % 7, (3200, 3)).astype(np.float32)
            window = Window("motor", turn, time.time_ns(), time.monotonic_ns(), 3200.0, samples)
            started = time.perf_counter_ns()
            inference = model.infer(window)
            decision = decider.step(inference)
            if decision.entries:
                outbox.submit(decision.entries, lambda _: None)
            added.append((time.perf_counter_ns() - started - inference.invoke_ns) / 1e6)
        outbox.close()
        model.close()
    figures = percentiles(added[200:])
    what = (
        "what preparation, post-processing, rules and hand-over add to the bare invoke, vibration window of 3,200 × 3"
    )
    rows = [row(what, _p50_p99(figures), aim="p99 ≤ 2 ms", met=figures["p99"] <= 2.0)]
    return {"unit": "ms added to the invoke, vibration window of 3200 x 3", **figures, "rows": rows}


def _p50_p99(figures: Mapping[str, float]) -> str:
    return f"p50 {figures['p50']:.2g} ms, **p99 {figures['p99']:.3g} ms**"


def sensor_latency(sensors: int = 8, seconds: float = 30.0) -> dict[str, Any]:
    """Window complete until a subscriber of the local broker has its event, in ms; eight sensors at 3.2 kHz.

    The whole way is real: daemon, durable outbox, mosquitto, and a subscriber in another process (this one).
    """
    delays: list[float] = []

    def on_message(_client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        event = decode(bytes(message.payload), Event)
        if event.phase != "end":
            delays.append((time.time_ns() - event.captured_at_ns) / 1e6)

    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        sources, pipelines = loud_sensors(folder, sensors)
        with Rig(folder / "rig", sources, pipelines) as rig:
            rig.start()
            client = mqtt.Client(CallbackAPIVersion.VERSION2)
            client.on_message = on_message
            client.connect("127.0.0.1", rig.ports.broker)
            client.subscribe("sluice/v1/+/event/+")
            client.loop_start()
            time.sleep(seconds)
            client.loop_stop()
            rig.stop()
    figures = percentiles(delays[sensors:])
    what = (
        f"last sample of a window until a subscriber of the local broker has the event; {sensors} sensors at 3.2 kHz; "
        "through the durable outbox and mosquitto"
    )
    rows = [row(what, _p50_p99(figures), aim="p99 ≤ 20 ms", met=figures["p99"] <= 20.0)]
    return {"unit": "ms", "sensors": sensors, **figures, "rows": rows}


def loud_sensors(folder: Path, sensors: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make sensors whose every window tells something: noise that no machine makes."""
    file = folder / "noise.npz"
    np.savez(file, samples=np.random.default_rng(1).normal(0, 20.0, (3200 * 10, 3)).astype(np.float32))
    source = {"type": "replay", "file": str(file), "rate_hz": 3200.0, "loop": True}
    rule = {"name": "anomaly", "min_score": 0.01, "update_seconds": 0.01}
    pipeline = {"model": "vibration-anomaly", "rules": [rule], "interest": {"low_confidence": None}}
    names = [f"sensor-{number}" for number in range(sensors)]
    return dict.fromkeys(names, source), {name: {**pipeline, "source": name} for name in names}


_FIRST = """
import sys
import time
started = time.perf_counter()
from pathlib import Path
import numpy as np
from gateway.config import Pipeline, Vault
from gateway.inference.bundle import ReleaseStore
from gateway.inference.select import load_model
from gateway.preprocess.preparation import preparation_for
from gateway.sealing import SealedModels, open_vault
from gateway.values import Window
sealed = SealedModels(open_vault(Vault(level="software"), Path(sys.argv[1])))
releases = ReleaseStore(sealed=sealed.directory)
model = load_model(releases, Pipeline(source="s", model="vibration-anomaly"), preparation_for, sealed.open)
model.infer(Window("s", 1, 0, 0, 3200.0, np.zeros((3200, 3), np.float32)))
print(time.perf_counter() - started)
"""


def start_up() -> dict[str, Any]:
    """Seconds from the first import to the first inference, in a fresh process; weights sealed, level `software`."""
    with tempfile.TemporaryDirectory() as state:  # the first run, which is left out below, seals the release
        command = [sys.executable, "-c", _FIRST, state]
        outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(7)]
    runs = [float(output.splitlines()[-1]) for output in outputs]
    figures = percentiles(runs[1:])
    p50 = figures["p50"]
    rows = [row("first import to first inference, fresh process", f"**{p50:.2f} s**", aim="≤ 2 s", met=p50 <= 2.0)]
    return {"unit": "s", **figures, "rows": rows}


def memory() -> dict[str, Any]:
    """Resident memory of the daemon with the shipped models and no camera, MiB."""
    missing = _needs_assets()
    if missing:
        return missing
    sources = sources_for(Wishes("", 1.0, None), (DEMO / "data").resolve())
    pipelines = demo_pipelines()
    sources.pop("entrance")
    pipelines.pop("people")
    with tempfile.TemporaryDirectory() as directory, Rig(Path(directory) / "rig", sources, pipelines) as rig:
        rig.start()

        def all_ran() -> bool:
            status = rig.gateway_status() or {"pipelines": []}
            return bool(status["pipelines"]) and all(p["inferences"] for p in status["pipelines"])

        eventually(all_ran, "every pipeline ran", 60.0)
        time.sleep(5.0)
        sizes = _sizes(rig.gateway.pid)
        rig.stop()
    what = f"resident memory of the daemon, {len(pipelines)} pipelines on the two sensor models, no camera"
    rows = [row(what, f"**{sizes['rss']} MiB** (PSS {sizes['pss']:.0f})", aim="< 120 MiB", met=sizes["rss"] < 120)]
    return {"unit": "MiB", "models": sorted({p["model"] for p in pipelines.values()}), **sizes, "rows": rows}


def _sizes(pid: int) -> dict[str, float]:
    """Read resident and proportional size from smaps_rollup (proc(5))."""
    fields = {"Rss:": "rss", "Pss:": "pss", "Anonymous:": "anonymous"}
    sizes: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, *rest = line.split()
        if name in fields:
            sizes[fields[name]] = round(int(rest[0]) / 1024, 1)
    return sizes
