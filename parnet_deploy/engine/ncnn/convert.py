"""An ONNX stage graph as ncnn layers. Every value that a layer gives keeps its ONNX name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parnet_deploy.engine.ncnn.conversion import Conversion
from parnet_deploy.engine.ncnn.layers import Blob, LayerGraph
from parnet_deploy.engine.ncnn.operators import OPERATORS
from parnet_deploy.engine.ncnn.values import UnfitValueError
from parnet_deploy.errors import BuildError, MissingDependencyError, os_reason
from parnet_deploy.spec import Array, TensorSpec

if TYPE_CHECKING:
    import onnx


def convert(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> tuple[LayerGraph, list[tuple[str, Blob]]]:
    """Read an ONNX graph and give its layers.

    Args:
        path: ONNX file, its weights below its own folder.
        inputs: what it reads: images (N, 3, H, W) or maps (N, C, H, W).
        outputs: what it gives.

    Returns:
        The layers, and each output's name with the blob that holds it.

    Raises:
        BuildError: the file cannot be read, or holds what has no counterpart here; the message
            names the node.
        MissingDependencyError: the onnx package is not installed.
    """
    graph, constants = _read(path)
    _refuse_halves(constants, path)
    state = Conversion(graph, constants, {spec.name for spec in outputs})
    for spec in inputs:
        state.add_input(spec)
    for node in graph.node:
        _add_node(state, node)
    return state.layers, [(spec.name, state.output(spec)) for spec in outputs]


def _read(path: Path) -> tuple[onnx.GraphProto, dict[str, Array]]:
    try:
        import onnx
    except ImportError as exc:
        raise MissingDependencyError(
            f"building an ncnn engine reads ONNX graphs, and onnx cannot be imported ({exc}): "
            "pip install onnx; running one does not need it"
        ) from exc
    try:
        model = onnx.load(path)
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    except OSError as exc:
        raise BuildError(f"{path} cannot be read: {os_reason(exc)}") from exc
    except Exception as exc:  # protobuf's and onnx's share no base class
        raise BuildError(f"{path} cannot be read as ONNX: {exc}") from exc
    return model.graph, constants


def _refuse_halves(constants: Mapping[str, Array], path: Path) -> None:
    """Raise for a graph in float16: ncnn's weights here are float32, and so is what it computes."""
    if any(constant.dtype == np.float16 for constant in constants.values()):
        raise BuildError(
            f"{path.name} is a graph in float16, and ncnn engines are float32: export the model "
            "with --precision fp32"
        )


def _add_node(state: Conversion, node: onnx.NodeProto) -> None:
    """Convert a node, whose inputs are converted.

    Raises:
        BuildError: it has no counterpart here.
    """
    emit = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if emit is None:
        raise BuildError(
            f"node '{node.name}' is a {node.domain or 'ai.onnx'}.{node.op_type}, which this "
            f"converter does not know; it knows {', '.join(sorted(OPERATORS))}"
        )
    try:
        emit(state, node, _attributes(node))
    except (UnfitValueError, KeyError, ValueError, IndexError) as exc:
        raise BuildError(
            f"node '{node.name}' ({node.op_type}) has no counterpart in ncnn: {exc}"
        ) from exc


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
