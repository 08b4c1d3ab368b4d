"""What each block's convolution computes in, as a graph's nodes say it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from parnet_deploy.lowering.layers import CONV, is_layer
from parnet_deploy.spec import LOGITS

_FLOATS: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}

_QUANTISED: Mapping[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}

_PASSES = frozenset({"Cast", "Reshape", "Transpose"})
"""What may stand between a convolution and the DequantizeLinear that it reads."""

HEAD = "head"


def layer_types(model: onnx.ModelProto) -> Mapping[str, str]:
    """The precision of each block's convolution, and of the head's linear layer.

    A convolution computes in ``int8`` or ``fp8`` where both its input and its kernel are
    dequantised from that, and otherwise in the type that its kernel has where it reads it.

    Args:
        model: a whole graph or a stage; its weights may lie outside.

    Returns:
        ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8`` by block; ``mixed`` where input and kernel
        are of different types, ``unknown`` where a type is none of these.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    makers = {name: node for node in inferred.node for name in node.output}
    found: dict[str, str] = {}
    for node in inferred.node:
        if node.op_type == "Conv" and is_layer(node.name):
            block = node.name.removesuffix(CONV)
        elif node.op_type == "Gemm" and node.name.partition(".")[0] in (LOGITS, HEAD):
            block = HEAD
        else:
            continue
        quantised = {_quantised_type(name, makers, kinds) for name in node.input[:2]}
        floats = {_FLOATS.get(kinds.get(name, 0), "unknown") for name in node.input[:2]}
        both = quantised if len(quantised) == 1 and None not in quantised else floats
        found[block] = str(both.pop()) if len(both) == 1 else "mixed"
    return found


def dequantiser(name: str, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DequantizeLinear that a convolution's input or kernel comes from, or None.

    Args:
        name: of what the convolution reads.
        makers: the graph's nodes by the names of what they give.
    """
    while name in makers and makers[name].op_type in _PASSES:
        name = makers[name].input[0]
    node = makers.get(name)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _quantised_type(
    name: str, makers: Mapping[str, onnx.NodeProto], kinds: Mapping[str, int]
) -> str | None:
    """The precision that a convolution's input is dequantised from, or None."""
    node = dequantiser(name, makers)
    return None if node is None else _QUANTISED.get(kinds.get(node.input[0], 0))
