"""The same graph in float32, for a runtime that has no kernels in its types.

ONNX Runtime's CPU provider computes in neither bfloat16 nor float8, and in float16 it leaves out
roundings as it likes. Here every value is computed in float32 and rounded to its type by a Cast
there and back, so that a graph and its stages round at the same places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 and float8_e4m3fn by name from here on
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from parnet_deploy.spec import TensorSpec

EMULATED = ("bfloat16", "float8_e4m3fn")
"""numpy's names of the types for which ONNX Runtime has no kernels on a CPU."""

EXACTLY = (*EMULATED, "float16")
"""The same and float16: for a comparison to the last bit."""

_ONNX_TYPES = {
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
}

_MOVES = frozenset({"Concat", "Flatten", "Reshape", "Split", "Transpose", "Unsqueeze", "Identity"})
"""Operators whose outputs hold nothing but numbers of their inputs."""


def emulate(model: onnx.ModelProto, types: Collection[str] = EMULATED) -> onnx.ModelProto:
    """A graph that gives in float32 what another gives in its types, rounding by rounding.

    Args:
        model: the graph, with its weights in it; it is left as it is.
        types: numpy's names of the types to do without, out of `EXACTLY`. float8 stays between
            QuantizeLinear and DequantizeLinear, for which there are kernels.

    Returns:
        A new graph. Its inputs and outputs of these types are float32, holding numbers of the type.
    """
    wanted = {_ONNX_TYPES[name] for name in types}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kinds = _kinds(result)
    eights = wanted & {TensorProto.FLOAT8E4M3FN}
    if eights:
        _float8_from_outside(result.graph, kinds)
    if halves := wanted - eights:
        _round_values(result.graph, kinds, halves)
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type in wanted:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del result.graph.value_info[:]
    return result


def emulated_spec(spec: TensorSpec, types: Collection[str] = EMULATED) -> TensorSpec:
    """The contract of an input or output in the emulated graph."""
    return replace(spec, dtype="float32") if spec.dtype in types else spec


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all values, by name."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def _float8_from_outside(graph: onnx.GraphProto, kinds: dict[str, int]) -> None:
    """Casts behind float8 inputs and in front of float8 outputs."""
    eight = TensorProto.FLOAT8E4M3FN
    read = [value.name for value in graph.input if kinds[value.name] == eight]
    given = [value.name for value in graph.output if kinds[value.name] == eight]
    inner = {name: f"{name}.fp8" for name in (*read, *given)}
    for node in graph.node:
        _rename(node.input, inner)
        _rename(node.output, inner)
    before = [_cast(name, inner[name], eight) for name in read]
    after = [_cast(inner[name], name, TensorProto.FLOAT) for name in given]
    _put(graph, [*before, *graph.node, *after])


def _round_values(graph: onnx.GraphProto, kinds: dict[str, int], halves: Collection[int]) -> None:
    """Everything in float32, rounded to the type that it had."""
    for tensor in graph.initializer:
        if tensor.data_type in halves:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in halves:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type in _MOVES:
            continue
        for index, name in enumerate(node.output):
            kind = kinds.get(name, TensorProto.UNDEFINED)
            if kind in halves:
                node.output[index] = f"{name}.exact"
                nodes += [
                    _cast(f"{name}.exact", f"{name}.rounded", kind),
                    _cast(f"{name}.rounded", name, TensorProto.FLOAT),
                ]
    _put(graph, nodes)


def _cast(read: str, given: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [read], [given], name=f"{given}.cast", to=to)


def _rename(names: list[str], known: dict[str, str]) -> None:
    for index, name in enumerate(names):
        names[index] = known.get(name, name)


def _put(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
