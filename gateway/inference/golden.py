"""Golden inputs: a release proves on this very machine that it answers as it did where it was made.

A flipped weight byte or an outdated runtime gives no error, only wrong answers; this is what notices.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.inference.backend import Session, Tensors, TensorSpec
from gateway.inference.bundle import Release
from gateway.wire.manifest import Golden, Target

_LOOSEST_OF_RANGE: Final = 1 / 16
"""Of the range of an integer type of up to 16 bits: 15 steps of int8."""
_LOOSEST_OF_VALUE: Final = 1 / 4
"""Of the largest value that is expected, where the type has no range worth speaking of."""
_LOOSEST_AT_ZERO: Final = 0.01
"""Where nothing but zeros is expected."""


def verify_golden(release: Release, session: Session, target: Target) -> Tensors | None:
    """Run all golden inputs for a target; return the outputs of the last one, None if the release has none.

    Raises:
        ModelError: a file is wrong, or an answer is off by more than the manifest allows.
    """
    outputs: Tensors | None = None
    for golden in release.manifest.golden:
        if golden.target == target:
            outputs = _verify(release, session, golden)
    return outputs


def _verify(release: Release, session: Session, golden: Golden) -> Tensors:
    spec = session.info.inputs[0]
    inputs, rest = _take(release.read_golden(golden.input, golden.input_sha256), spec.dtype, spec.shape)
    expected_bytes = release.read_golden(golden.output, golden.output_sha256)
    where = f"model {release.label}: golden input {golden.input} ({golden.target})"
    if inputs is None or rest:
        raise ModelError(f"{where}: is no tensor {spec.shape} of {spec.dtype}")
    try:
        outputs = session.run(inputs)
    except InferenceError as error:
        raise ModelError(f"{where}: {error}") from error
    for output, output_spec in zip(outputs, session.info.outputs, strict=True):
        expected, expected_bytes = _take(expected_bytes, output_spec.dtype, output.shape)
        if expected is None:
            raise ModelError(f"{where}: {golden.output} is shorter than the outputs of the model")
        _compare(where, output_spec, output, expected, golden.tolerance)
    if expected_bytes:
        raise ModelError(f"{where}: {golden.output} is longer than the outputs of the model")
    return outputs


def loosest_tolerance(expected: bytes, outputs: Sequence[TensorSpec]) -> float | None:
    """Return beyond which tolerance a golden output would let wrong answers pass; None if it is not of these outputs.

    Of several outputs the loosest counts, because one tolerance is for all of them.

    Args:
        expected: the file of the golden output.
        outputs: of the model, in the graph's order.
    """
    limits = []
    for spec in outputs:
        values, expected = _take(expected, spec.dtype, spec.shape)
        if values is None:
            return None
        limits.append(_loosest(values))
    return None if expected or not limits else max(limits)


def _loosest(values: NDArray[Any]) -> float:
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        kind = np.iinfo(values.dtype)
        return (int(kind.max) - int(kind.min)) * _LOOSEST_OF_RANGE
    finite = np.abs(values.astype(np.float64))
    largest = float(finite.max(where=np.isfinite(finite), initial=0.0))
    return max(_LOOSEST_AT_ZERO, largest * _LOOSEST_OF_VALUE)


def _take(data: bytes, dtype: str, shape: tuple[int, ...]) -> tuple[NDArray[Any] | None, bytes]:
    """Cut one little-endian tensor off the front; several outputs stand one behind the other, in the graph's order."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(data) < size:
        return None, data
    return np.frombuffer(data[:size], dtype=kind.newbyteorder("<")).astype(kind).reshape(shape), data[size:]


def _compare(where: str, spec: TensorSpec, found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    off = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    worst = float(off.max()) if off.size else 0.0
    if not worst <= tolerance:  # a NaN is never within the tolerance
        unit = "steps" if found.dtype.kind in "iu" else ""
        raise ModelError(
            f"{where}: output {spec.name} is off by {worst:g} {unit}, {tolerance:g} allowed: the file or the runtime "
            "is not what the release was tested with"
        )
