"""Bytes of an update over those of the compressed full file, for three ways a model changes, and the time it takes.

The models are made by the parts of the recipe `process-anomaly`, on its data, but wider, so that it is weights that are
measured. One is trained; then (a) its last layer alone is fitted anew to other series, (b) it is trained anew on those
with another seed, (c) the same float weights are quantized anew, calibrated on those. Where the collection of models
beside the repository is there, a MobileNet v2 gets a head whose every weight is moved by chance by up to three steps:
to a patch that is no kinder than a fine-tune.
"""

import importlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from cloud_bridge.registry.packing import METHODS, best_patch, pack
from cloud_bridge.training import network
from cloud_bridge.training.flatbuffer import Dense, dense_network
from cloud_bridge.training.quantize import to_int8
from cloud_bridge.training.recipes import process
from tests.bench.table import at_most

HIDDEN: Final = (512, 64, 512)
EPOCHS: Final = 4
SERIES: Final = 36
MOBILENET: Final = Path(__file__).parents[3] / "shared/models/coral/mobilenet_v2_1.0_224_quant.tflite"
MIB: Final = 1 << 20
AIM_SHARES: Final = {
    "head-only fine-tune": 0.3,
    "full retrain": 1.0,
    "re-quantise": 0.1,
    "another head on MobileNet v2": 0.3,
}
"""What an update may weigh at most, over the compressed full file; of a full retrain nothing is the same."""
AIM_SECONDS_PER_MIB: Final = 5.0

Array = NDArray[np.float32]


def sizes() -> dict[str, Any]:
    """Measure every case; the share that counts is that of what the registry would choose."""
    cases = {name: _measured(base, content) for name, (base, content) in _cases().items()}
    rows = [
        at_most(
            f"update over the compressed full file, {name}",
            case["chosen_share"],
            AIM_SHARES[name],
            measured=f"{case['chosen_share']:.3f} ({case['chosen']}; full {case['full_zstd_bytes']:,} bytes)",
        )
        for name, case in cases.items()
    ]
    slowest = max(case["seconds_per_mib"] for case in cases.values())
    rows.append(at_most("making a patch, both ways, worst case", slowest, AIM_SECONDS_PER_MIB, unit="s for each MiB"))
    return {"cases": cases, "rows": rows}


def _measured(base: bytes, content: bytes) -> dict[str, Any]:
    _, full = pack(content)
    found: dict[str, Any] = {"file_bytes": len(content), "full_zstd_bytes": len(full)}
    seconds = 0.0
    for method, make in METHODS.items():
        patch, took = _timed(partial(make, base, content))
        seconds += took
        found |= {f"{method}_bytes": len(patch), f"{method}_seconds": round(took, 3)}
    best = best_patch(base, content, len(full))
    chosen = len(full) if best is None else len(best.content)
    found["chosen"] = "full" if best is None else best.method
    found["chosen_share"] = round(chosen / len(full), 4)
    found["bytes_saved"] = len(full) - chosen
    found["seconds_per_mib"] = round(seconds / (len(content) / MIB), 3)
    return found | _beside(base, content)


def _beside(base: bytes, content: bytes) -> dict[str, Any]:
    """Measure HDiffPatch too where it is installed (`pip install hdiffpatch`); the registry does not use it."""
    try:
        hdiffpatch: Any = importlib.import_module("hdiffpatch")
    except ModuleNotFoundError:
        return {}
    levels = {
        "bzip2": hdiffpatch.BZip2Config(level=9),
        "zstd": hdiffpatch.ZStdConfig(level=22),
        "lzma2": hdiffpatch.Lzma2Config(level=9),
    }
    found: dict[str, Any] = {}
    for name, compression in levels.items():
        patch, took = _timed(partial(hdiffpatch.diff, base, content, compression=compression))
        assert hdiffpatch.apply(base, patch) == content
        found |= {f"hdiffpatch_{name}_bytes": len(patch), f"hdiffpatch_{name}_seconds": round(took, 3)}
    return found


def _timed(make: Callable[[], bytes]) -> tuple[bytes, float]:
    started = time.perf_counter()
    made = make()
    return made, time.perf_counter() - started


def _cases() -> dict[str, tuple[bytes, bytes]]:
    before, after = _rows(0), _rows(1)
    layers = network.train_restorer(before, before, hidden=HIDDEN, epochs=EPOCHS, seed=process.SEED)
    anew = network.train_restorer(after, after, hidden=HIDDEN, epochs=EPOCHS, seed=process.SEED + 1)
    base = _int8(layers, before)
    cases = {
        "head-only fine-tune": (base, _int8(_new_head(layers, after), after)),
        "full retrain": (base, _int8(anew, after)),
        "re-quantise": (base, _int8(layers, after)),
    }
    if MOBILENET.exists():
        cases["another head on MobileNet v2"] = _mobilenet(MOBILENET.read_bytes())
    return cases


def _rows(stream: int) -> Array:
    """Windows of healthy series, of streams that no shipped model has seen."""
    return np.concatenate(process.normal(100 + stream, SERIES))


def _int8(layers: list[Dense], calibration: Array) -> bytes:
    model = dense_network(layers, "delta")
    return to_int8(model, "features", [each[None] for each in calibration[::50]])


def _new_head(layers: list[Dense], rows: Array) -> list[Dense]:
    """Fit the last layer anew, by least squares on what the others make of the rows."""
    seen = network.answer(layers[:-1], rows)
    design = np.concatenate([seen, np.ones((len(seen), 1), np.float32)], axis=1)
    gram = design.T @ design + 1e-2 * np.eye(design.shape[1], dtype=np.float32)
    solved = np.linalg.solve(gram, design.T @ rows)
    head = Dense(
        weights=np.ascontiguousarray(solved[:-1].T, np.float32),
        biases=np.asarray(solved[-1], np.float32),
        activation="none",
    )
    return [*layers[:-1], head]


def _mobilenet(data: bytes) -> tuple[bytes, bytes]:
    """Return the file as our writer lays it out, and the same with the weights of its last layer moved."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    base = _packed(model)
    graph = model.subgraphs[0]
    candidates = [
        model.buffers[graph.tensors[at].buffer]
        for operator in graph.operators[-4:]
        for at in operator.inputs
        if at >= 0 and model.buffers[graph.tensors[at].buffer].data is not None
    ]
    weights = max(candidates, key=lambda buffer: len(buffer.data))
    moved = np.asarray(weights.data, np.uint8).astype(np.int16)
    moved += np.random.default_rng(process.SEED).integers(-3, 4, len(moved), dtype=np.int16)
    weights.data = np.clip(moved, 0, 255).astype(np.uint8)
    return base, _packed(model)


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
