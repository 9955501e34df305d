"""What every inference runtime offers: LiteRT on the CPU, the Edge TPU, and whatever comes (TensorRT, remote)."""

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from gateway.wire.manifest import Target

Tensors = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend can be used on this machine now."""

    available: bool
    reason: str  # what was found, or what is missing and the remedy


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model, with its quantization: `real = scale * (integer - zero_point)`."""

    name: str
    shape: tuple[int, ...]  # the batch first
    dtype: str  # as numpy names it
    scale: float  # 0: not quantized
    zero_point: int


class Weights(Protocol):
    """The verified plaintext of one artefact, in memory and nowhere else, until `close`."""

    @property
    def path(self) -> str:
        """Where a runtime can open it; of use to this process only."""

    def close(self) -> None:
        """Give the memory back; may be called twice."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One artefact, verified and ready to be opened. It must stay open while a session runs: runtimes map it."""

    release: str  # `name version`, for messages
    file: str
    target: Target
    sha256: str
    weights: Weights


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a session really runs on, as found out after loading, not as asked for."""

    backend: str
    device: str
    runtime: str  # name and version
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    total_ops: int
    delegated_ops: int  # run by an accelerator, or by the CPU's fast kernels
    fixed_batch: bool = False  # only batches of one row


class Session(Protocol):
    """A loaded model. One thread uses it at a time."""

    @property
    def info(self) -> SessionInfo:
        """What it runs on and what its tensors are."""

    def run(self, inputs: NDArray[Any]) -> Tensors:
        """Run the model once on the first input, (rows, …), in the dtype of its tensor; return the raw outputs.

        The outputs are the caller's to keep. They are not dequantized; `info.outputs` says how.

        Raises:
            InferenceError: this invocation failed.
        """

    def close(self) -> None:
        """Let the model and its device go; may be called twice."""


class Backend(Protocol):
    """A runtime on a kind of device."""

    @property
    def name(self) -> str:
        """As in the configuration."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """The kinds of artefacts it runs, the preferred first."""

    def probe(self) -> Availability:
        """Find out whether it can be used, without keeping the device open."""

    def load(self, model: ModelFile, threads: int) -> Session:
        """Load a model.

        Raises:
            BackendUnavailableError: the runtime or the device is not there.
            ModelError: the runtime refuses the file.
        """
