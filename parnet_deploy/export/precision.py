"""A float32 graph in a lower precision.

The graph is emitted in float32, whatever it is to compute in, and rounded as a whole: so every
precision has the operators of the same form, and what a rounding may change is told from what it
may not: the float32 graph is proven first (`gate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.errors import ExportError
from parnet_deploy.spec import Array
from parnet_deploy.spec.precision import Precision, arithmetic

Lowering = Callable[[gs.Graph, str, str], gs.Graph]


def lower(graph: gs.Graph, precision: Precision, *, first: str, last: str) -> gs.Graph:
    """A graph in a precision.

    Args:
        graph: in float32; it is left as it is.
        precision: what to compute in.
        first: the tensor that the network reads. What makes it stays in float32.
        last: the tensor that the network gives. It stays float32, and so does what reads it.

    Returns:
        A graph of the same inputs and outputs.

    Raises:
        ExportError: a weight is beyond the precision's range.
    """
    return _LOWERINGS[precision](graph, first, last)


def to_half(graph: gs.Graph, first: str, last: str) -> gs.Graph:
    """A graph whose weights and values between two tensors are float16.

    Args:
        graph: in float32; it is left as it is.
        first: a tensor that is cast to float16 for all that reads it.
        last: a tensor that is cast back.

    Returns:
        A sorted copy with two casts more.

    Raises:
        ExportError: a weight is beyond float16's range.
    """
    half = graph.copy()
    tensors = half.tensors()
    begin, end = tensors[first], tensors[last]
    inside = _between(begin, end)
    weights: dict[str, gs.Constant] = {}
    for node in inside:
        if node.op == "BatchNormalization":
            _normalise_by_affine(node)
        node.inputs = [_half_weight(tensor, weights) for tensor in node.inputs]
        for output in node.outputs:
            output.dtype = np.dtype(np.float16)
    _cast_in(half, begin, inside)
    _cast_out(half, end)
    return half.cleanup().toposort()


def _between(begin: gs.Variable, end: gs.Variable) -> list[gs.Node]:
    """The nodes that depend on one tensor and do not depend on the other."""
    found: dict[int, gs.Node] = {}
    waiting = list(begin.outputs)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            waiting += [reader for out in node.outputs if out is not end for reader in out.outputs]
    return list(found.values())


def _normalise_by_affine(node: gs.Node) -> None:
    """Make a batch normalisation's mean 0 and its variance 1, in float64.

    So two of its weights are rounded instead of four, and a variance cannot be out of range.
    """
    x, *constants = node.inputs
    weight, bias, mean, variance = (tensor.values.astype(np.float64) for tensor in constants)
    scale = weight / np.sqrt(variance + node.attrs["epsilon"])
    values = (scale, bias - mean * scale, np.zeros_like(mean), np.ones_like(variance))
    node.attrs = {**node.attrs, "epsilon": 0.0}
    node.inputs = [
        x,
        *(
            gs.Constant(tensor.name, value.astype(np.float32))
            for tensor, value in zip(constants, values, strict=True)
        ),
    ]


def _half_weight(tensor: gs.Tensor, known: dict[str, gs.Constant]) -> gs.Tensor:
    """A float32 weight in float16; anything else as it is."""
    if not isinstance(tensor, gs.Constant) or tensor.values.dtype != np.float32:
        return tensor
    if tensor.name not in known:
        known[tensor.name] = gs.Constant(tensor.name, _rounded(tensor.name, tensor.values))
    return known[tensor.name]


def _rounded(name: str, values: Array) -> Array:
    greatest = float(np.abs(values).max(initial=0.0))
    limit = arithmetic("fp16").greatest
    if greatest > limit:
        raise ExportError(
            f"the weight '{name}' reaches {greatest:.3g}, and fp16 ends at {limit:.0f}: "
            "export this network with --precision fp32; nothing was written"
        )
    rounded: Array = values.astype(np.float16)
    return rounded


def _cast_in(graph: gs.Graph, begin: gs.Variable, inside: list[gs.Node]) -> None:
    cast = gs.Variable(f"{begin.name}.fp16", dtype=np.dtype(np.float16), shape=begin.shape)
    for node in inside:
        node.inputs = [cast if tensor is begin else tensor for tensor in node.inputs]
    attrs = {"to": np.float16}
    graph.nodes.append(gs.Node("Cast", cast.name, attrs=attrs, inputs=[begin], outputs=[cast]))


def _cast_out(graph: gs.Graph, end: gs.Variable) -> None:
    """Let the tensor be the cast of what was it, for its readers and as an output."""
    (maker,) = end.inputs
    half = gs.Variable(f"{end.name}.fp16", dtype=np.dtype(np.float16), shape=end.shape)
    maker.outputs = [half if tensor is end else tensor for tensor in maker.outputs]
    end.dtype = np.dtype(np.float32)
    name = f"{end.name}.fp32"
    attrs = {"to": np.float32}
    graph.nodes.append(gs.Node("Cast", name, attrs=attrs, inputs=[half], outputs=[end]))


def _as_it_is(graph: gs.Graph, first: str, last: str) -> gs.Graph:
    return graph


_LOWERINGS: Mapping[Precision, Lowering] = {"fp32": _as_it_is, "fp16": to_half}
