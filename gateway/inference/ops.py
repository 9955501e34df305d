"""Reads the list of operations from an Interpreter, to tell what really runs where."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

DELEGATE: Final = "DELEGATE"
_QUANTIZABLE = frozenset({"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"})


@dataclass(frozen=True, slots=True)
class Op:
    """One node: an operation of the graph, or a delegate that stands for several."""

    name: str
    inputs: frozenset[int]  # tensor indices
    outputs: frozenset[int]
    is_delegate: bool = False


def ops_of(interpreter: Any) -> list[Op]:
    """Return the nodes: first the operations of the graph, then the delegates that replaced some.

    The call is private to the runtime; without it the list is empty and nothing is reported as delegated.
    """
    details = getattr(interpreter, "_get_ops_details", None)
    if details is None:
        return []
    return [
        Op(
            name=str(detail["op_name"]),
            inputs=_tensors(detail["inputs"]),
            outputs=_tensors(detail["outputs"]),
            is_delegate=detail["op_name"] == DELEGATE,
        )
        for detail in details()
    ]


def count_delegated(ops: Sequence[Op]) -> int:
    """Count the operations of the graph that delegates run in their place."""
    producers = {tensor: op for op in ops if not op.is_delegate for tensor in op.outputs}
    return len({id(op) for delegate in ops if delegate.is_delegate for op in _replaced(delegate, producers)})


def _replaced(delegate: Op, producers: dict[int, Op]) -> Iterable[Op]:
    """Yield what lies between the outputs and the inputs of a delegate."""
    seen = set(delegate.inputs)
    open_tensors = list(delegate.outputs - seen)
    while open_tensors:
        tensor = open_tensors.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        op = producers.get(tensor)
        if op is not None:
            yield op
            open_tensors.extend(op.inputs - seen)


def hybrid_ops(interpreter: Any) -> list[str]:
    """Return the kinds of operations that mix integer weights with float activations (`int8-dynamic`)."""
    details = getattr(interpreter, "_get_ops_details", None)
    if details is None:
        return []
    types = {detail["index"]: detail["dtype"].__name__ for detail in interpreter.get_tensor_details()}
    found = set()
    for detail in details():
        tensors = [int(index) for index in detail["inputs"]]
        if detail["op_name"] in _QUANTIZABLE and len(tensors) > 1:
            activation, weights = types.get(tensors[0], ""), types.get(tensors[1], "")
            if activation == "float32" and weights.startswith("int"):
                found.add(str(detail["op_name"]))
    return sorted(found)


def _tensors(indices: Iterable[int]) -> frozenset[int]:
    return frozenset(int(index) for index in indices if int(index) >= 0)  # -1: an optional input left out
