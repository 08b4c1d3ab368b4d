"""How a graph says that it is quantised, read from its nodes.

It is read here, and not asked of what wrote it: a fault of the one would be a fault of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import numpy_helper

from parnet_deploy.errors import VerificationError
from parnet_deploy.lowering import layer_types
from parnet_deploy.lowering.layers import CONV
from parnet_deploy.spec import Array

QUANTISED = ".quantised"
"""What the network reads keeps its name, and bears this behind it where it is quantised."""

_PASSES = frozenset({"Cast", "Identity", "Reshape", "Transpose"})
"""What may stand between a kernel's DequantizeLinear and its convolution."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WrittenQuantiser:
    """A QuantizeLinear, or a DequantizeLinear of what is not a weight.

    Attributes:
        node: the node's name.
        tensor: the activation's name in the float32 graph.
        scale: all its scales.
        zero_point: all its zero points. A QuantizeLinear without one gives uint8 around 0; of a
            DequantizeLinear without one None is known.
    """

    node: str
    tensor: str
    scale: Array
    zero_point: Array | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WrittenKernel:
    """The kernel of a quantised convolution.

    Attributes:
        values: (O, I / groups, K, K) int8 or float8.
        scale: (O,) or (); with the factor behind the convolution where there is one.
        zero_point: (O,) or (); 0 where there is none.
    """

    values: Array
    scale: Array
    zero_point: Array

    def dequantised(self) -> Array:
        """The numbers that it stands for, float64."""
        shape = (-1, *(1,) * (self.values.ndim - 1)) if self.scale.ndim else ()
        scale = self.scale.astype(np.float64).reshape(shape)
        zero = self.zero_point.astype(np.float64).reshape(shape)
        result: Array = (self.values.astype(np.float64) - zero) * scale
        return result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Written:
    """All that a graph says of it.

    Attributes:
        quantisers: of activations, in graph order.
        kernels: of quantised convolutions, by block.
    """

    quantisers: tuple[WrittenQuantiser, ...]
    kernels: Mapping[str, WrittenKernel]


def load_graph(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """A graph as it lies there.

    Args:
        path: ONNX file; external data lies beside or below it.
        weights: whether its external data is read, too.

    Raises:
        VerificationError: it cannot be read.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as exc:  # its parser's exceptions share no base class
        raise VerificationError(f"cannot read {path} as an ONNX graph: {exc}") from exc
    if weights:
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _bring_in(tensor, path)
    return model


def graph_types(path: Path) -> Mapping[str, str]:
    """The precision of each block's convolution in a graph, its weights left where they are.

    Raises:
        VerificationError: it cannot be read.
    """
    return layer_types(load_graph(path, weights=False))


def location_of(tensor: onnx.TensorProto, source: Path) -> str:
    """Where a tensor's data lie, relative to its graph's folder and within it.

    Args:
        tensor: of external data.
        source: the graph's file.

    Raises:
        VerificationError: they lie elsewhere.
    """
    told = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    location = told.get("location", "")
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts:
        raise VerificationError(f"{source} has its weights outside itself: {location}")
    return location


def _bring_in(tensor: onnx.TensorProto, source: Path) -> None:
    """Read external data into a tensor.

    onnx itself refuses files that have several names, as the copies in `verify.expose` have.
    """
    location = location_of(tensor, source)
    told = {entry.key: entry.value for entry in tensor.external_data}
    try:
        with (source.parent / location).open("rb") as file:
            file.seek(int(told.get("offset", 0)))
            tensor.raw_data = file.read(int(told["length"]) if "length" in told else -1)
    except (OSError, ValueError) as exc:
        raise VerificationError(f"cannot read the weights of {source}: {exc}") from exc
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT


def read_written(model: onnx.ModelProto) -> Written:
    """What a graph says of how it is quantised.

    Args:
        model: a whole graph or a stage, its weights in it.

    Raises:
        VerificationError: a scale or zero point is not a constant.
    """
    constants = _constants(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    quantisers = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            quantisers.append(_quantiser(node, node.output[0], constants))
        elif node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            quantisers.append(_quantiser(node, node.input[0], constants))
    kernels = {}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name.endswith(CONV):
            read = _dequantised(node.input[1], makers)
            if read is not None and read.input[0] in constants:
                factor = constants.get(f"{node.name}.factor")
                kernels[node.name.removesuffix(CONV)] = _kernel(read, constants, factor)
    return Written(quantisers=tuple(quantisers), kernels=kernels)


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """What does not depend on the images, by name."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = next(a.t for a in node.attribute if a.name == "value")
    return found


def _quantiser(
    node: onnx.NodeProto, tensor: str, constants: Mapping[str, onnx.TensorProto]
) -> WrittenQuantiser:
    scale, zero_point = _parameters(node, constants)
    if zero_point is None and node.op_type == "QuantizeLinear":
        zero_point = np.zeros(scale.shape, np.uint8)
    return WrittenQuantiser(
        node=node.name,
        tensor=tensor.removesuffix(QUANTISED),
        scale=scale,
        zero_point=zero_point,
    )


def _kernel(
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    factor: onnx.TensorProto | None,
) -> WrittenKernel:
    """A kernel's numbers; `factor` is what multiplies each channel behind the convolution."""
    scale, zero_point = _parameters(node, constants)
    if factor is not None:
        zero_point = None if zero_point is None else np.broadcast_to(zero_point, factor.dims[-1:])
        scale = scale.astype(np.float64) * numpy_helper.to_array(factor).reshape(-1)
    values: Array = numpy_helper.to_array(constants[node.input[0]])
    zeros = np.zeros(scale.shape, np.int8) if zero_point is None else zero_point
    return WrittenKernel(values=values, scale=scale, zero_point=zeros)


def _parameters(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> tuple[Array, Array | None]:
    """Scale and zero point of a node, None where it has none."""
    names = [name for name in node.input[1:3] if name]
    if not names or any(name not in constants for name in names):
        raise VerificationError(f"'{node.name}' has a scale or zero point that is computed")
    values: list[Array] = [numpy_helper.to_array(constants[name]) for name in names]
    return values[0], values[1] if len(values) > 1 else None


def _dequantised(name: str, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DequantizeLinear that a tensor comes from, or None."""
    while name in makers and makers[name].op_type in _PASSES:
        name = makers[name].input[0]
    node = makers.get(name)
    return node if node is not None and node.op_type == "DequantizeLinear" else None
