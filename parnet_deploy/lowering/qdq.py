"""int8 and fp8: QuantizeLinear and DequantizeLinear around what is quantised.

A tensor ``t`` becomes three: its maker gives ``t.float``, quantised it bears the name ``t``, and
all that read it read ``t.dequantised``. So a block's value has the block's name in every graph, and
crosses a cut in the quantised type. What the network reads keeps its name and type; quantised it is
``images.quantised``.

References: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html and
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.errors import ExportError
from parnet_deploy.lowering.layers import Layer, check_kept, layers, observed
from parnet_deploy.lowering.weights import QuantisedWeight, quantised, rounded_scale
from parnet_deploy.spec import Array
from parnet_deploy.spec.precision import arithmetic
from parnet_deploy.spec.quantisation import LIMITS, Quantisation, Quantiser, Scheme

_TO_NHWC = [0, 2, 3, 1]


def quantise(graph: gs.Graph, quantisation: Quantisation, *, first: str) -> gs.Graph:
    """A graph whose convolutions, but for the kept ones, read quantised values and weights.

    Args:
        graph: in float32; it is left as it is.
        quantisation: how.
        first: the tensor that the network reads.

    Returns:
        A sorted copy. All that is not quantised is float32; scales are numbers of the scheme's
        base, written as float32.

    Raises:
        ExportError: a quantiser is missing, of another type than the scheme's, or of a tensor
            that is not there; or a weight is not finite.
        UsageError: there is no such layer to keep.
    """
    result = graph.copy()
    found = layers(result)
    check_kept(found, quantisation.kept)
    _check_tensors(result, quantisation)
    tensors = result.tensors()
    for name, quantiser in quantisation.tensors.items():
        _quantise_tensor(result, tensors[name], quantiser, quantisation.scheme, first=first)
    for layer in found:
        if layer.block not in quantisation.kept:
            _quantise_weight(result, layer, quantisation)
    return result.cleanup().toposort()


def _check_tensors(graph: gs.Graph, quantisation: Quantisation) -> None:
    scheme, tensors = quantisation.scheme, quantisation.tensors
    needed = observed(graph, scheme, quantisation.kept)
    if missing := [name for name in needed if name not in tensors]:
        raise ExportError(f"'{missing[0]}' is to be quantised and has no range: calibrate again")
    known = graph.tensors().keys() & set(observed(graph, scheme))
    for name, quantiser in tensors.items():
        if name not in known:
            raise ExportError(f"the calibration is of another network: it has no '{name}'")
        if quantiser.dtype != scheme.activation:
            raise ExportError(
                f"'{name}' is calibrated for {quantiser.dtype}, and the target takes "
                f"{scheme.activation}: calibrate again"
            )


def _quantise_tensor(
    graph: gs.Graph, tensor: gs.Variable, quantiser: Quantiser, scheme: Scheme, *, first: str
) -> None:
    name, shape = tensor.name, tensor.shape
    readers = list(tensor.outputs)
    scale = gs.Constant(
        f"{name}.quantise.scale", rounded_scale(quantiser.scale, scheme.base).astype(np.float32)
    )
    dtype = np.dtype(quantiser.dtype)
    zero = gs.Constant(f"{name}.quantise.zero_point", np.array(quantiser.zero_point, dtype))
    is_read = name == first
    narrow = gs.Variable(f"{name}.quantised" if is_read else name, dtype=dtype, shape=shape)
    wide = gs.Variable(f"{name}.dequantised", dtype=np.dtype(np.float32), shape=shape)
    for reader in readers:
        reader.inputs = [wide if read is tensor else read for read in reader.inputs]
    if not is_read:
        tensor.name = f"{name}.float"
        graph.outputs = [narrow if output is tensor else output for output in graph.outputs]
    graph.nodes += [
        gs.Node(
            "QuantizeLinear", f"{name}.quantise", inputs=[tensor, scale, zero], outputs=[narrow]
        ),
        gs.Node(
            "DequantizeLinear", f"{name}.dequantise", inputs=[narrow, scale, zero], outputs=[wide]
        ),
    ]


def _quantise_weight(graph: gs.Graph, layer: Layer, quantisation: Quantisation) -> None:
    (node,) = (node for node in graph.nodes if node.name == layer.node)
    found = _weight_of(node, layer, quantisation)
    scale = gs.Constant(f"{layer.weight}.scale", found.scale.astype(np.float32))
    zeros = np.zeros(found.scale.shape, found.values.dtype)
    zero = gs.Constant(f"{layer.weight}.zero_point", zeros)
    narrow = gs.Constant(layer.weight, found.values)
    wide = gs.Variable(
        f"{layer.weight}.dequantised", dtype=np.dtype(np.float32), shape=list(found.values.shape)
    )
    graph.nodes.append(
        gs.Node(
            "DequantizeLinear",
            f"{layer.weight}.dequantise",
            attrs={"axis": 0} if found.scale.ndim else {},
            inputs=[narrow, scale, zero],
            outputs=[wide],
        )
    )
    node.inputs[1] = wide
    if found.factor is not None:
        _rescale(graph, node, found.factor.astype(np.float32))


def _weight_of(node: gs.Node, layer: Layer, quantisation: Quantisation) -> QuantisedWeight:
    """A kernel's quantised weight: factored where the graph has a place for it and fp16 holds it.

    The place is in NHWC. There TensorRT RTX multiplies in the kernel that also takes the gate, the
    sum, the activation and the next quantisation; a scale for each channel at the kernel itself
    takes two launches more a block (docs/kernel-counts.md).
    """
    scheme, values = quantisation.scheme, node.inputs[1].values
    make = partial(quantised, layer.weight, values, scheme.weight, base=scheme.base)
    plain: QuantisedWeight = make(per_channel=quantisation.per_channel)
    if scheme.base == "fp32" or not quantisation.per_channel or _turned(node) is None:
        return plain
    found: QuantisedWeight = make(per_channel=True, factored=True)
    return found if _holds(found, node, quantisation.tensors[layer.input], scheme) else plain


def _turned(node: gs.Node) -> gs.Node | None:
    """The transposition to NHWC that alone reads a convolution's output, or None."""
    readers = node.outputs[0].outputs
    if len(readers) == 1 and readers[0].op == "Transpose":
        return readers[0] if list(readers[0].attrs["perm"]) == _TO_NHWC else None
    return None


def _holds(weight: QuantisedWeight, node: gs.Node, read: Quantiser, scheme: Scheme) -> bool:
    """Whether the base holds whatever the convolution may give before it is multiplied."""
    numbers = arithmetic(scheme.base)
    dtype = np.dtype(numbers.dtype)
    if weight.factor is None or weight.factor.min() < np.finfo(dtype).smallest_normal:
        return False
    axes = tuple(range(1, weight.values.ndim))
    steps = np.abs(weight.values.astype(np.float64)).sum(axis=axes)
    greatest = float(weight.scale) * read.scale * (1 + LIMITS[read.dtype][1]) * steps
    if len(node.inputs) > 2:
        greatest = greatest + np.abs(node.inputs[2].values) / weight.factor.astype(np.float64)
    return float(greatest.max()) <= numbers.greatest


def _rescale(graph: gs.Graph, node: gs.Node, factor: Array) -> None:
    """Multiply a convolution's output by each channel's factor; its bias is divided before."""
    turn = _turned(node)
    if turn is None:
        raise ValueError(f"the output of '{node.name}' is not transposed")
    if len(node.inputs) > 2:
        bias = node.inputs[2]
        node.inputs[2] = gs.Constant(bias.name, (bias.values / factor).astype(np.float32))
    given = turn.outputs[0]
    readers = list(given.outputs)
    scaled = gs.Variable(f"{node.name}.rescaled", dtype=np.dtype(np.float32))
    for reader in readers:
        reader.inputs = [scaled if read is given else read for read in reader.inputs]
    constant = gs.Constant(f"{node.name}.factor", factor.reshape(1, 1, 1, -1))
    graph.nodes.append(gs.Node("Mul", scaled.name, inputs=[given, constant], outputs=[scaled]))
