"""ONNX operators as ncnn layers: a function each.

What ncnn does in one pass over memory becomes one layer: SiLU, an activation behind a convolution
or a product, a gate over a map that nobody else reads. Batch normalisations become a scale and a
shift, reckoned in float64.
References: https://onnx.ai/onnx/operators/,
https://github.com/Tencent/ncnn/blob/master/docs/developer-guide/operators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from parnet_deploy.engine.ncnn.conversion import Conversion
from parnet_deploy.engine.ncnn.layers import Blob
from parnet_deploy.engine.ncnn.values import UnfitValueError, joined
from parnet_deploy.runtime.ncnn_param import DYNAMIC_SCALE, Param
from parnet_deploy.spec import Array

if TYPE_CHECKING:
    import onnx

ADD, MULTIPLY = 0, 2  # BinaryOp's and Eltwise's numbers
SUM = 1
RELU, SIGMOID = 1, 4  # activation_type
AVERAGE, VALID = 1, 1  # pooling_type, pad_mode

_ACTIVATION = 9  # number of activation_type
_CONVOLUTION = (0, 1, 11, 2, 12, 3, 13, 4, 14, 15, 16, 5, 6)
"""Numbers of: outputs; width and height of kernel, dilation, stride; padding at the left, top,
right and bottom; bias; weights."""
_ACTIVATED = frozenset({"Convolution", "ConvolutionDepthWise", "InnerProduct"})

# Layers with weights.


def conv(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Conv: a convolution, or of a vector a product."""
    weight = state.weight(node.input[1])
    bias = [state.weight(name) for name in node.input[2:]]
    x = state.blob(node.input[0])
    outputs, inputs, height, width = weight.shape
    groups = attributes.get("group", 1)
    if inputs * groups != x.channels or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnfitValueError(f"weights {weight.shape} for {x.channels} channels")
    if not x.size:
        _product(state, node, weight.reshape(outputs, -1), bias, (height, width, groups))
        return
    pads = attributes.get("pads", [0, 0, 0, 0])
    strides, dilations = (attributes.get(key, [1, 1]) for key in ("strides", "dilations"))
    top, left, bottom, right = pads
    values = (outputs, width, height, *dilations[::-1], *strides[::-1])
    values += (left, top, right, bottom, len(bias), weight.size)
    params: dict[int, Param] = dict(zip(_CONVOLUTION, values, strict=True))
    kind = "Convolution"
    if groups > 1:
        kind, params = "ConvolutionDepthWise", {**params, 7: groups}
    kernel = [dilations[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    size = tuple((x.size[i] + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i in (0, 1))
    state.layer(node, kind, [x], params, [weight, *bias], channels=outputs, size=size)


def gemm(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Gemm: a product."""
    if attributes.get("transA") or {attributes.get(k, 1.0) for k in ("alpha", "beta")} != {1.0}:
        raise UnfitValueError(f"attributes {attributes}")
    weight = state.weight(node.input[1])
    weight = weight if attributes.get("transB") else weight.T
    _product(state, node, weight, [state.weight(name) for name in node.input[2:]], (1, 1, 1))


def _product(
    state: Conversion, node: onnx.NodeProto, weight: Array, bias: list[Array], ones: tuple[int, ...]
) -> None:
    """A vector times a matrix (O, I)."""
    x = state.blob(node.input[0])
    outputs, inputs = weight.shape
    if ones != (1, 1, 1) or x.size or inputs != x.channels:
        raise UnfitValueError(f"{(x.channels, *x.size)} times {weight.shape}")
    params: dict[int, Param] = {0: outputs, 1: len(bias), 2: weight.size}
    state.layer(node, "InnerProduct", [x], params, [weight, *bias], channels=outputs)


def batch_norm(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """BatchNormalization: a scale and a shift."""
    weight, bias, mean, var = (state.weight(name).astype(np.float64) for name in node.input[1:])
    scale = weight / np.sqrt(var + attributes.get("epsilon", 1e-5))
    _scale(state, node, state.blob(node.input[0]), scale, bias - mean * scale)


def _scale(
    state: Conversion, node: onnx.NodeProto, x: Blob, scale: Array, shift: Array | None = None
) -> None:
    weights = [scale] if shift is None else [scale, shift]
    params: dict[int, Param] = {0: x.channels, 1: len(weights) - 1}
    state.layer(node, "Scale", [x], params, weights)


# Element by element.


def multiply(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Mul: SiLU, a scale, a gate, or a product element by element."""
    one, other = node.input
    for x, y in ((one, other), (other, one)):
        if state.sigmoid_of.get(y) == x:
            state.layer(node, "Swish", [state.blob_of_any(x)], {}, [])
            return
        if y in state.constants:
            blob = state.blob(x)
            _scale(state, node, blob, _per_channel(state.constants[y], blob))
            return
    _gate_or_binary(state, node, MULTIPLY)


def add(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Add: a shift, which a scale before it takes along, or a sum."""
    one, other = node.input
    for x, y in ((one, other), (other, one)):
        if y in state.constants:
            blob, maker = state.blob(x), state.owner(x)
            shift = _per_channel(state.constants[y], blob)
            if maker is not None and maker.kind == "Scale" and maker.params[1] == 0:
                maker.params[1] = 1
                maker.weights.append(shift)
                state.rename(node, blob)
            else:
                _scale(state, node, blob, np.ones(blob.channels), shift)
            return
    _gate_or_binary(state, node, ADD)


def _gate_or_binary(state: Conversion, node: onnx.NodeProto, operator: int) -> None:
    blobs = [state.blob_of_any(name) for name in node.input]
    if blobs[0].channels != blobs[1].channels:
        raise UnfitValueError(f"{blobs[0].channels} and {blobs[1].channels} channels")
    if not blobs[0].size:
        blobs.reverse()
    x, y = blobs
    if not x.size or y.size:
        if x.size != y.size:
            raise UnfitValueError(f"maps of {x.size} and {y.size}")
        state.layer(node, "BinaryOp", blobs, {0: operator}, [])
        return
    name = node.input[0] if state.blob_of_any(node.input[0]) is x else node.input[1]
    if operator == MULTIPLY and state.owner(name) is not None:  # in place: no memory is fetched
        state.layer(node, "Scale", blobs, {0: DYNAMIC_SCALE}, [])
        return
    column = Blob(name=f"{node.output[0]}/column", channels=y.channels, size=(1, 1))
    state.layers.add("Reshape", [y], column, {0: 1, 1: 1, 2: y.channels})
    state.layer(node, "BinaryOp", [x, column], {0: operator}, [])


def sigmoid(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Sigmoid: by itself, behind a product, or a part of SiLU."""
    if node.output[0] in state.silus:
        state.sigmoid_of[node.output[0]] = node.input[0]
    else:
        _activation(state, node, "Sigmoid", SIGMOID)


def relu(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Relu: by itself, or behind a convolution or product."""
    _activation(state, node, "ReLU", RELU)


def _activation(state: Conversion, node: onnx.NodeProto, kind: str, number: int) -> None:
    x, maker = state.blob_of_any(node.input[0]), state.owner(node.input[0])
    if maker is None or maker.kind not in _ACTIVATED or _ACTIVATION in maker.params:
        state.layer(node, kind, [x], {}, [])
        return
    maker.params[_ACTIVATION] = number
    state.rename(node, x)


# Over all pixels, and over all classes.


def pool(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """GlobalAveragePool: a vector."""
    x = state.blob(node.input[0])
    if len(x.size) != 2:
        raise UnfitValueError(f"a pool over {x.size} pixels")
    state.layer(node, "Pooling", [x], {0: AVERAGE, 4: 1}, [], size=())


def pool_windows(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """AveragePool without padding."""
    x, (height, width) = state.blob(node.input[0]), attributes["kernel_shape"]
    vertical, horizontal = attributes.get("strides", [1, 1])
    if len(x.size) != 2 or any(attributes.get("pads", ())) or attributes.get("ceil_mode"):
        raise UnfitValueError(f"attributes {attributes} over {x.size} pixels")
    size = (x.size[0] - height) // vertical + 1, (x.size[1] - width) // horizontal + 1
    params: dict[int, Param] = {0: AVERAGE, 1: width, 11: height}
    params |= {2: horizontal, 12: vertical, 5: VALID}
    state.layer(node, "Pooling", [x], params, [], size=size)


def mean(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Mean: a sum, scaled."""
    blobs = [state.blob(name) for name in node.input]
    if len({(blob.channels, blob.size) for blob in blobs}) > 1:
        raise UnfitValueError("a mean of values of several shapes")
    x = blobs[0]
    if len(blobs) > 1:
        total = Blob(name=f"{node.output[0]}/sum", channels=x.channels, size=x.size)
        x = state.layers.add("Eltwise", blobs, total, {0: SUM})
    _scale(state, node, x, np.full(x.channels, 1 / len(blobs)))


def softmax(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Softmax over the channels of a vector."""
    x = state.blob(node.input[0])
    if x.size or attributes.get("axis", -1) not in (1, -1):
        raise UnfitValueError(f"a softmax of {(x.channels, *x.size)}")
    state.layer(node, "Softmax", [x], {0: 0, 1: 1}, [])


# What only moves channels, or changes how they are counted.


def reshape(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Reshape: no layer."""
    shape = state.weight(node.input[1]).tolist()
    state.move(node, state.values[node.input[0]].reshaped(shape))


def transpose(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Transpose: no layer. Channels that come back to the front give their blob the name."""
    value = state.values[node.input[0]]
    if value.last and state.owner(node.input[0]) is not None:
        state.blob_of_any(node.input[0]).name = node.output[0]
    state.move(node, value.transposed(attributes["perm"]))


def split(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Split of the channels: no layer."""
    if attributes.get("axis", 0) != 1:
        raise UnfitValueError(f"axis {attributes.get('axis', 0)}")
    sizes = state.weight(node.input[1]).tolist()
    parts = state.values[node.input[0]].split(sizes)
    state.move(node, *parts)


def concat(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Concat: no layer."""
    parts = [state.values[name] for name in node.input]
    state.move(node, joined(parts, attributes["axis"]))


def vector(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Flatten, Unsqueeze: a vector has no pixels whose axes would matter."""
    value = state.values[node.input[0]]
    if value.size:
        raise UnfitValueError(f"{value.shape} is not a vector")
    state.move(node, value)


def cast(state: Conversion, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """To float32: the runner gives whole numbers as such."""
    import onnx

    if attributes["to"] != onnx.TensorProto.FLOAT:
        raise UnfitValueError(f"a cast to type {attributes['to']}")
    state.move(node, state.values[node.input[0]])


def _per_channel(constant: Array, x: Blob) -> Array:
    """A constant, one number or (1, C, 1, 1), as C numbers."""
    fits = constant.shape[:2] == (1, x.channels) and constant.size == x.channels
    if constant.size != 1 and not fits:
        raise UnfitValueError(f"a constant {constant.shape} over {x.channels} channels")
    return np.broadcast_to(constant.reshape(-1), (x.channels,))


OPERATORS: Mapping[str, Callable[[Conversion, Any, dict[str, Any]], None]] = {
    "Add": add,
    "AveragePool": pool_windows,
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Concat": concat,
    "Conv": conv,
    "Flatten": vector,
    "Gemm": gemm,
    "GlobalAveragePool": pool,
    "Mean": mean,
    "Mul": multiply,
    "Relu": relu,
    "Reshape": reshape,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
    "Split": split,
    "Transpose": transpose,
    "Unsqueeze": vector,
}
