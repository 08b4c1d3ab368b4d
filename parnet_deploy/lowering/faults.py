"""Whether a quantised graph is what its quantisation says: scales, zero points and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from parnet_deploy.lowering.layers import CONV, is_layer
from parnet_deploy.lowering.types import dequantiser
from parnet_deploy.lowering.weights import QuantisedWeight, quantised, rounded_scale
from parnet_deploy.spec import IMAGES, PREPROCESSED, Array
from parnet_deploy.spec.quantisation import Quantisation

_SHOWN = 3


def quantisation_faults(
    model: onnx.ModelProto, quantisation: Quantisation, weights: Mapping[str, Array]
) -> tuple[str, ...]:
    """What of a whole graph or a stage is not as its quantisation says, each in a sentence.

    Every QuantizeLinear and DequantizeLinear of an activation has the scale, the zero point and the
    type of its quantiser; every kernel that is to be quantised is what `lowering.weights.quantised`
    makes of the float32 one; every other is not quantised; nothing else is. And none is missing: a
    quantised convolution reads what is dequantised, and every tensor with a quantiser is quantised
    where its block is in the graph.

    Args:
        model: the graph, with its weights in it.
        quantisation: what it is to be.
        weights: the float32 kernels by name, ``{block}.conv.weight``.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return (
        *_activation_faults(model, quantisation, constants),
        *_missing_faults(model, quantisation),
        *_weight_faults(model, quantisation, constants, weights),
    )


def in_words(faults: Iterable[str]) -> str:
    """The first few of them in one line, and how many more there are."""
    every = list(faults)
    more = len(every) - _SHOWN
    return "; ".join(every[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _activation_faults(
    model: onnx.ModelProto, quantisation: Quantisation, constants: Mapping[str, Array]
) -> Iterator[str]:
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] in constants:
            continue
        name = node.name.rpartition(".")[0]
        quantiser = quantisation.tensors.get(name)
        if quantiser is None:
            yield f"'{name}' is quantised and was not to be"
            continue
        scale = constants[node.input[1]]
        wanted = rounded_scale(quantiser.scale, quantisation.scheme.base)
        if scale.shape != () or float(scale) != float(wanted):
            yield f"the scale of '{node.name}' is {scale}, not {wanted}"
        zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)
        if zero.dtype.name != quantiser.dtype:
            yield f"'{node.name}' is {zero.dtype.name}, not {quantiser.dtype}"
        elif float(zero) != quantiser.zero_point:
            yield f"the zero point of '{node.name}' is {zero}, not {quantiser.zero_point}"


def _missing_faults(model: onnx.ModelProto, quantisation: Quantisation) -> Iterator[str]:
    """Layers and tensors that are to be quantised, and that a graph only passes on."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = [node for node in model.graph.node if node.op_type == "Conv" and is_layer(node.name)]
    blocks = {node.name.removesuffix(CONV) for node in found}
    for node in found:
        block = node.name.removesuffix(CONV)
        if block not in quantisation.kept and dequantiser(node.input[0], makers) is None:
            yield f"'{block}' is to be quantised, and reads '{node.input[0]}', which is not"
    made = {node.name for node in model.graph.node if node.op_type == "QuantizeLinear"}
    read = {value.name for value in model.graph.input}
    for name in quantisation.tensors:
        is_first = name in (IMAGES, PREPROCESSED) and IMAGES in read
        is_here = is_first or name.partition(".")[0] in blocks
        if is_here and f"{name}.quantise" not in made:
            yield f"'{name}' has no QuantizeLinear"


def _weight_faults(
    model: onnx.ModelProto,
    quantisation: Quantisation,
    constants: Mapping[str, Array],
    weights: Mapping[str, Array],
) -> Iterator[str]:
    stored = stored_weights(model)
    for node in model.graph.node:
        if node.op_type != "Conv" or not is_layer(node.name):
            continue
        block = node.name.removesuffix(CONV)
        found = stored.get(block)
        if found is None or block in quantisation.kept:
            if (found is None) != (block in quantisation.kept):
                yield f"'{block}' is {'not quantised' if found is None else 'quantised, not kept'}"
            continue
        name = f"{node.name}.weight"
        wanted = quantised(
            name,
            weights[name],
            quantisation.scheme.weight,
            base=quantisation.scheme.base,
            per_channel=quantisation.per_channel,
            factored=found.factor is not None,
        )
        if np.any(constants.get(f"{name}.zero_point", np.zeros(1)).astype(np.float32) != 0):
            yield f"the zero point of '{name}' is not 0"
        if found.values.dtype != wanted.values.dtype:
            yield f"'{name}' is {found.values.dtype.name}, not {wanted.values.dtype.name}"
        elif not np.array_equal(found.scales(), wanted.scales()):
            yield f"the scales of '{name}' are not those of its channels' greatest magnitudes"
        elif not np.array_equal(found.values.view(np.uint8), wanted.values.view(np.uint8)):
            yield f"'{name}' is not the network's, divided by its scales"


def stored_weights(model: onnx.ModelProto) -> dict[str, QuantisedWeight]:
    """The quantised kernels of a graph by block, with the scales that stand in it.

    Args:
        model: a whole graph or a stage, with its weights in it.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        maker = makers.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type != "Conv" or not is_layer(node.name) or maker is None:
            continue
        factor = constants.get(f"{node.name}.factor")
        found[node.name.removesuffix(CONV)] = QuantisedWeight(
            values=constants[maker.input[0]],
            scale=constants[maker.input[1]],
            factor=None if factor is None else factor.reshape(-1),
        )
    return found
