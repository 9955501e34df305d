"""A simulated inference runtime: a backend whose sessions answer what a function says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendUnavailableError, InferenceError, ModelError
from gateway.inference.backend import Availability, ModelFile, SessionInfo, Tensors, TensorSpec
from gateway.wire.manifest import Target

Answer = Callable[[NDArray[Any]], Tensors]


def tensor(shape: tuple[int, ...], dtype: str = "float32", scale: float = 0.0, zero_point: int = 0) -> TensorSpec:
    """Return the description of a tensor."""
    return TensorSpec("t", shape, dtype, scale, zero_point)


@dataclass
class ScriptedBackend:
    """A backend with knobs.

    Knobs:
        available: what the probe says.
        refuse_load: loading raises this.
        answer: from the input batch to the outputs; it may raise.
        fixed_batch: the session takes single rows only.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    answer: Answer
    name: str = "scripted"
    targets: tuple[Target, ...] = ("cpu-int8", "cpu-float")
    available: Availability = field(default_factory=lambda: Availability(available=True, reason="scripted"))
    refuse_load: BackendUnavailableError | ModelError | None = None
    fixed_batch: bool = False
    loaded: list[ModelFile] = field(default_factory=list)
    sessions: list["ScriptedSession"] = field(default_factory=list)
    probes: int = 0

    def probe(self) -> Availability:
        """Say what `available` holds."""
        self.probes += 1
        return self.available

    def load(self, model: ModelFile, threads: int) -> "ScriptedSession":
        """Note the file and make a session."""
        if self.refuse_load is not None:
            raise self.refuse_load
        self.loaded.append(model)
        info = SessionInfo(
            backend=self.name,
            device="nowhere",
            runtime=f"scripted, {threads} threads",
            inputs=self.inputs,
            outputs=self.outputs,
            total_ops=1,
            delegated_ops=0,
            fixed_batch=self.fixed_batch,
        )
        self.sessions.append(ScriptedSession(info, self.answer))
        return self.sessions[-1]


@dataclass
class ScriptedSession:
    """A session that remembers the batches it ran and whether it was closed."""

    info: SessionInfo
    answer: Answer
    batches: list[NDArray[Any]] = field(default_factory=list)
    closed: bool = False

    def run(self, inputs: NDArray[Any]) -> Tensors:
        """Answer, if the batch is one the session takes."""
        expected = self.info.inputs[0]
        if self.closed or inputs.shape[1:] != expected.shape[1:] or inputs.dtype != np.dtype(expected.dtype):
            raise InferenceError(f"cannot run {inputs.shape} of {inputs.dtype}")
        if self.info.fixed_batch and len(inputs) != 1:
            raise InferenceError("single rows only")
        self.batches.append(inputs.copy())
        return self.answer(inputs)

    def close(self) -> None:
        """Note it."""
        self.closed = True
