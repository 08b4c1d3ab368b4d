"""float16 and bfloat16: a graph's weights and values between two casts.

In bfloat16 the classifier and the averages that it reads stay float32: logits with 8 bits can be
equal where the network's are not, and then the first class wins.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from parnet_deploy.lowering.weights import rounded
from parnet_deploy.spec.precision import arithmetic

Half = Literal["fp16", "bf16"]

_ONNX_TYPE: dict[Half, int] = {
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
}


def to_half(graph: gs.Graph, precision: Half, *, first: str, last: str) -> gs.Graph:
    """A graph whose float32 weights and values between two tensors are of half the bits.

    Args:
        graph: in float32, or quantised (`qdq`) with scales in this type; it is left as it is.
        precision: what to round to.
        first: a tensor that is cast for all that reads it.
        last: a tensor that is float32 again.

    Returns:
        A sorted copy with two casts more.

    Raises:
        ExportError: a weight is beyond the type's range.
    """
    half = graph.copy()
    tensors = half.tensors()
    begin, end = tensors[first], tensors[last]
    classifier = _classifier(end) if precision == "bf16" else []
    inside = _between(begin, end, classifier)
    narrow = np.dtype(arithmetic(precision).dtype)
    weights: dict[str, gs.Constant] = {}
    for node in inside:
        if node.op == "BatchNormalization":
            _normalise_by_affine(node)
        node.inputs = [_half_weight(tensor, precision, weights) for tensor in node.inputs]
        for output in node.outputs:
            if output.dtype == np.float32:
                output.dtype = narrow
    _cast_in(half, begin, inside, precision)
    if classifier:
        _cast_for(half, classifier, inside, precision)
    else:
        _cast_out(half, end, precision)
    return half.cleanup().toposort()


def _classifier(end: gs.Variable) -> list[gs.Node]:
    """What makes the logits of the last blocks' values, from the averages on."""
    found: dict[int, gs.Node] = {}
    waiting = list(end.inputs)
    while waiting:
        node = waiting.pop()
        if id(node) in found:
            continue
        found[id(node)] = node
        if node.op != "GlobalAveragePool":
            waiting += [maker for tensor in node.inputs for maker in tensor.inputs]
    return list(found.values())


def _between(begin: gs.Variable, end: gs.Variable, without: Collection[gs.Node]) -> list[gs.Node]:
    """The nodes that depend on one tensor and do not depend on the other.

    Among them are those that make constants for these, such as dequantised weights.
    """
    left_out = {id(node) for node in without}
    found: dict[int, gs.Node] = {}
    waiting = list(begin.outputs)
    while waiting:
        node = waiting.pop()
        if id(node) in found or id(node) in left_out:
            continue
        found[id(node)] = node
        waiting += [reader for out in node.outputs if out is not end for reader in out.outputs]
        waiting += [
            maker
            for tensor in node.inputs
            for maker in tensor.inputs
            if all(isinstance(read, gs.Constant) for read in maker.inputs)
        ]
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


def _half_weight(tensor: gs.Tensor, precision: Half, known: dict[str, gs.Constant]) -> gs.Tensor:
    """A float32 weight rounded; anything else as it is."""
    if not isinstance(tensor, gs.Constant) or tensor.values.dtype != np.float32:
        return tensor
    if tensor.name not in known:
        values = rounded(tensor.name, tensor.values, precision)
        known[tensor.name] = gs.Constant(tensor.name, values)
    return known[tensor.name]


def _cast_in(graph: gs.Graph, begin: gs.Variable, inside: Sequence[gs.Node], to: Half) -> None:
    """Let what is inside read a cast of the tensor; what quantises it reads it as it is."""
    name = f"{begin.name}.{to}"
    cast = gs.Variable(name, dtype=np.dtype(arithmetic(to).dtype), shape=begin.shape)
    for node in inside:
        node.inputs = [cast if tensor is begin else tensor for tensor in node.inputs]
    attrs = {"to": _ONNX_TYPE[to]}
    graph.nodes.append(gs.Node("Cast", name, attrs=attrs, inputs=[begin], outputs=[cast]))


def _cast_out(graph: gs.Graph, end: gs.Variable, of: Half) -> None:
    """Let the tensor be the cast of what was it, for its readers and as an output."""
    (maker,) = end.inputs
    half = gs.Variable(f"{end.name}.{of}", dtype=np.dtype(arithmetic(of).dtype), shape=end.shape)
    maker.outputs = [half if tensor is end else tensor for tensor in maker.outputs]
    end.dtype = np.dtype(np.float32)
    name = f"{end.name}.fp32"
    attrs = {"to": onnx.TensorProto.FLOAT}
    graph.nodes.append(gs.Node("Cast", name, attrs=attrs, inputs=[half], outputs=[end]))


def _cast_for(
    graph: gs.Graph, readers: Sequence[gs.Node], inside: Sequence[gs.Node], of: Half
) -> None:
    """Let readers outside read a cast, in float32, of what is made inside."""
    made = {id(tensor) for node in inside for tensor in node.outputs}
    casts: dict[str, gs.Variable] = {}
    for node in readers:
        for index, tensor in enumerate(node.inputs):
            if id(tensor) not in made:
                continue
            if tensor.name not in casts:
                name = f"{tensor.name}.fp32"
                casts[tensor.name] = gs.Variable(name, dtype=np.dtype(np.float32))
                attrs = {"to": onnx.TensorProto.FLOAT}
                cast = gs.Node("Cast", name, attrs=attrs, inputs=[tensor])
                cast.outputs = [casts[tensor.name]]
                graph.nodes.append(cast)
            node.inputs[index] = casts[tensor.name]
