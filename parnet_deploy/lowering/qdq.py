"""int8 and fp8: QuantizeLinear and DequantizeLinear around what is quantised.

A tensor ``t`` becomes three: its maker gives ``t.float``, quantised it bears the name ``t``, and
all that read it read ``t.dequantised``. So a block's value has the block's name in every graph, and
crosses a cut in the quantised type. What the network reads keeps its name and type; quantised it is
``images.quantised``.

References: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html and
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.errors import ExportError
from parnet_deploy.lowering.layers import Layer, check_kept, layers, observed
from parnet_deploy.lowering.weights import quantised, rounded_scale
from parnet_deploy.spec.quantisation import Quantisation, Quantiser, Scheme


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
    weight, scheme = node.inputs[1], quantisation.scheme
    found = quantised(
        layer.weight,
        weight.values,
        scheme.weight,
        base=scheme.base,
        per_channel=quantisation.per_channel,
    )
    scale = gs.Constant(f"{layer.weight}.scale", found.scale.astype(np.float32))
    zero = gs.Constant(
        f"{layer.weight}.zero_point", np.zeros(found.scale.shape, found.values.dtype)
    )
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
