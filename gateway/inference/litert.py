"""The TFLite runtime on the CPU, and what is common to everything that runs through its Interpreter."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from numpy.typing import NDArray

from gateway.errors import BackendUnavailableError, InferenceError, ModelError
from gateway.inference.backend import Availability, ModelFile, Session, SessionInfo, Tensors, TensorSpec
from gateway.inference.ops import Op, count_delegated, hybrid_ops, ops_of
from gateway.inference.runtime import Runtime, installed_runtime
from gateway.wire.manifest import Target

log = structlog.get_logger()

CPU_BACKEND: Final = "litert-cpu"
EDGETPU_OP: Final = "edgetpu-custom-op"

_UNRESOLVED = re.compile(r"unresolved custom op: *([^\s.]+)")


class LiteRtBackend:
    """LiteRT with its XNNPACK kernels. Loading holds the GIL while the kernels pack the weights (10-20 ms for 4 MB)."""

    name: Final = CPU_BACKEND
    targets: tuple[Target, ...] = ("cpu-int8", "cpu-int4", "cpu-float")

    def __init__(self, find: Callable[[], Runtime] = installed_runtime) -> None:
        self._find = find

    def probe(self) -> Availability:
        """Look for the runtime."""
        try:
            return Availability(available=True, reason=str(self._find()))
        except BackendUnavailableError as error:
            return Availability(available=False, reason=str(error))

    def load(self, model: ModelFile, threads: int) -> Session:
        """Load a model from its verified weights, which are mapped, not copied; see `Backend.load`."""
        runtime = self._find()
        interpreter = open_interpreter(runtime, model, threads)
        return InterpreterSession(interpreter, model, str(runtime), self.name, "cpu")


def open_interpreter(runtime: Runtime, model: ModelFile, threads: int, delegates: Sequence[Any] = ()) -> Any:
    """Build an Interpreter and allocate its tensors.

    Raises:
        ModelError: the file is no model, or one of its operations is not known; the message names it and the remedy.
    """
    try:
        interpreter = runtime.interpreter(
            model_path=model.weights.path, num_threads=threads, experimental_delegates=list(delegates) or None
        )
        old = runtime.is_old and hybrid_ops(interpreter)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{model.release}: {_explain(model, str(error))}") from error
    if old:
        log.warning("model_may_answer_nonsense", model=model.release, file=model.file, ops=old, runtime=str(runtime))
    return interpreter


def _explain(model: ModelFile, message: str) -> str:
    unresolved = _UNRESOLVED.search(message)
    if unresolved is None:
        first_line = message.strip().splitlines()[0] if message.strip() else "no reason given"
        return f"{model.file} cannot be loaded: {first_line}"
    if unresolved[1] == EDGETPU_OP:
        return (
            f"{model.file} is compiled for the Edge TPU ({EDGETPU_OP}) and cannot run without it: install "
            "libedgetpu.so.1 and connect the device, or give the release a cpu-int8 artefact"
        )
    return (
        f"{model.file} uses the custom operation {unresolved[1]}, which this runtime does not have: "
        "convert the model without it"
    )


class InterpreterSession:
    """One Interpreter, its first input resized to the number of rows as they come."""

    def __init__(
        self, interpreter: Any, model: ModelFile, runtime: str, backend: str, device: str, *, fixed_batch: bool = False
    ) -> None:
        """Take an Interpreter with allocated tensors."""
        self._interpreter = interpreter
        self._file = model.file
        inputs = interpreter.get_input_details()
        outputs = interpreter.get_output_details()  # asked once: each call costs 6-11 µs
        self._input_index: int = inputs[0]["index"] if inputs else -1
        self._output_indices = [int(detail["index"]) for detail in outputs]
        ops = ops_of(interpreter)
        self._info = SessionInfo(
            backend=backend,
            device=device,
            runtime=runtime,
            inputs=tuple(_spec(detail) for detail in inputs),
            outputs=tuple(_spec(detail) for detail in outputs),
            total_ops=sum(not op.is_delegate for op in ops),
            delegated_ops=count_delegated(ops),
            fixed_batch=fixed_batch,
        )
        self._shape = self._info.inputs[0].shape if inputs else ()

    @property
    def info(self) -> SessionInfo:
        """What it runs on and what its tensors are."""
        return self._info

    def run(self, inputs: NDArray[Any]) -> Tensors:
        """Run once; see `Session.run`. The GIL is free meanwhile."""
        interpreter = self._interpreter
        if interpreter is None:
            raise InferenceError(f"{self._file}: the session is closed")
        try:
            if inputs.shape != self._shape:
                self._resize(inputs.shape)
            interpreter.set_tensor(self._input_index, inputs)
            interpreter.invoke()
            return tuple(interpreter.get_tensor(index) for index in self._output_indices)
        except (RuntimeError, ValueError) as error:
            raise InferenceError(f"{self._file}: {error}") from error

    def _resize(self, shape: tuple[int, ...]) -> None:
        expected = self._info.inputs[0].shape
        if shape[1:] != expected[1:] or (self._info.fixed_batch and shape[0] != expected[0]):
            raise InferenceError(f"{self._file}: expected an input of {expected}, got {shape}")
        self._shape = ()  # unknown until both calls have succeeded
        self._interpreter.resize_tensor_input(self._input_index, shape)
        self._interpreter.allocate_tensors()
        self._shape = shape

    def close(self) -> None:
        """Free the interpreter."""
        self._interpreter = None


def has_op(ops: Sequence[Op], name: str) -> bool:
    """Tell whether the graph holds an operation."""
    return any(op.name == name for op in ops)


def _spec(detail: dict[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    return TensorSpec(
        name=str(detail["name"]),
        shape=tuple(int(side) for side in detail["shape"]),
        dtype=str(detail["dtype"].__name__),
        scale=float(scale),
        zero_point=int(zero_point),
    )
