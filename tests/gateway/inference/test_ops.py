"""What the list of operations tells."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gateway.inference.ops import count_delegated, hybrid_ops, ops_of


class Graph:
    """Stands for an Interpreter with a list of operations and tensors."""

    def __init__(self, ops: list[tuple[str, list[int], list[int]]], dtypes: Mapping[int, type] | None = None) -> None:
        self._ops = ops
        self._dtypes = dtypes or {}

    def _get_ops_details(self) -> list[dict[str, Any]]:
        return [{"op_name": name, "inputs": given, "outputs": made} for name, given, made in self._ops]

    def get_tensor_details(self) -> list[dict[str, Any]]:
        return [{"index": index, "dtype": dtype} for index, dtype in self._dtypes.items()]


CHAIN = [("QUANTIZE", [0], [1]), ("CONV_2D", [1, 10], [2]), ("CONV_2D", [2, 11, -1], [3]), ("SOFTMAX", [3], [4])]


def test_without_delegates_nothing_is_delegated() -> None:
    assert count_delegated(ops_of(Graph(CHAIN))) == 0


def test_a_delegate_counts_for_the_operations_between_its_inputs_and_outputs() -> None:
    assert count_delegated(ops_of(Graph([*CHAIN, ("DELEGATE", [1, 10, 11], [3])]))) == 2
    assert count_delegated(ops_of(Graph([*CHAIN, ("DELEGATE", [0, 10], [2]), ("DELEGATE", [3], [4])]))) == 3


def test_a_runtime_that_lists_nothing_reports_nothing() -> None:
    assert ops_of(object()) == []
    assert hybrid_ops(object()) == []


def test_float_activations_with_integer_weights_are_hybrid() -> None:
    dynamic = {1: np.float32, 10: np.int8, 2: np.float32, 11: np.int8}
    assert hybrid_ops(Graph(CHAIN, dynamic)) == ["CONV_2D"]
    assert hybrid_ops(Graph(CHAIN, dict.fromkeys(dynamic, np.int8))) == []
    assert hybrid_ops(Graph(CHAIN, dict.fromkeys(dynamic, np.float32))) == []
