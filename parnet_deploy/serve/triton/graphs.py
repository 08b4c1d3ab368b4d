"""What each model's version folder holds: TensorRT's plan, or a graph with its weights in it."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parnet_deploy.bundle import (
    MODEL_GRAPH,
    EngineBundle,
    EngineStage,
    ModelBundle,
    build_command,
    open_model,
    resolve_model,
)
from parnet_deploy.errors import BundleError, MissingDependencyError, ServingError

LARGEST = 2**31 - 2**20
"""Bytes of weights in one ONNX file: protocol buffers' limit, less what a graph takes itself."""

WriteGraph = Callable[[EngineStage, Path], None]


def graph_writer(bundle: EngineBundle, model: Path | None = None) -> WriteGraph:
    """What writes the file of a stage's model.

    A plan is the engine's own. An ONNX Runtime engine's saved graphs are laid out for one CPU and
    one version, so those that it was built from are taken, and optimised where they are served.

    Args:
        bundle: the engine.
        model: its model bundle, where it is not where the engine says.

    Raises:
        ServingError: the model bundle is needed, and is not there, damaged, or another one.
        MissingDependencyError: graphs are to be written, and ``onnx`` is not installed.
    """
    if bundle.manifest.backend == "tensorrt":
        return lambda stage, path: _copy(bundle.file(stage.file), path)
    source = source_of(bundle, model)
    _load_onnx()
    return lambda stage, path: _write_graph(source, stage, path, split=bundle.manifest.split)


def graph_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names of a graph's inputs and outputs, each with its element type and shape.

    The type is numpy's, a symbolic size is None.
    """
    onnx = _load_onnx()
    graph = onnx.load(str(path), load_external_data=False).graph
    return _described(onnx, graph.input), _described(onnx, graph.output)


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphContents:
    """What a graph computes.

    Attributes:
        operations: sha256 of all of them in order.
        weights: sha256 of each by its name: of its type, its shape and its numbers.
    """

    operations: str
    weights: Mapping[str, str]


def graph_contents(path: Path) -> GraphContents:
    """What a graph computes, whether its weights are in it or in a file beside it."""
    onnx = _load_onnx()
    graph = onnx.load(str(path), load_external_data=True).graph
    operations = hashlib.sha256()
    for node in graph.node:
        operations.update(node.SerializeToString(deterministic=True))
    return GraphContents(
        operations=operations.hexdigest(),
        weights={tensor.name: _weight_sha256(onnx, tensor) for tensor in graph.initializer},
    )


def _weight_sha256(onnx: Any, tensor: Any) -> str:
    array = onnx.numpy_helper.to_array(tensor)
    head = f"{array.dtype.str} {array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def source_graph(source: ModelBundle, stage: EngineStage, *, split: bool) -> Path:
    """Where the graph lies that a stage was built from."""
    files = {graph.name: graph.file for graph in source.manifest.stages}
    return source.file(files[stage.name] if split else MODEL_GRAPH)


def _described(onnx: Any, values: Iterable[Any]) -> dict[str, Any]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found[value.name] = (dtype.name, shape)
    return found


def source_of(bundle: EngineBundle, model: Path | None) -> ModelBundle:
    """The very model that an engine was built from.

    Args:
        bundle: the engine.
        model: its model bundle, where it is not where the engine says.

    Raises:
        ServingError: it is not there, damaged, or another one.
    """
    reference = bundle.manifest.model
    path = model or resolve_model(reference, bundle.path)
    try:
        source = open_model(path)
    except BundleError as exc:
        raise ServingError(
            f"Triton is given the graphs that {bundle.path} was built from, and they cannot be "
            f"read: {exc}; where they lie somewhere else, give --model"
        ) from exc
    if source.manifest_sha256 != reference.manifest_sha256:
        raise ServingError(
            f"{path} is another model than {bundle.path} was built from; give that one with "
            f"--model, or build the engine again: {build_command(bundle.path, bundle.manifest)}"
        )
    return source


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def _write_graph(source: ModelBundle, stage: EngineStage, path: Path, *, split: bool) -> None:
    """A graph in one file: stages share a file of weights, and Triton's models share none."""
    onnx = _load_onnx()
    original = source_graph(source, stage, split=split)
    weights = _weight_bytes(onnx, original)
    if weights > LARGEST:
        raise ServingError(
            f"the weights of '{stage.name}' in {source.path} are {weights} bytes, more than the "
            f"{LARGEST} of one ONNX file; build an engine with --backend tensorrt"
        )
    graph = onnx.load(str(original), load_external_data=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _weight_bytes(onnx: Any, path: Path) -> int:
    """Bytes of a graph's own weights; the file that they are in holds other stages' as well."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
    )


def _load_onnx() -> Any:
    try:
        import onnx
    except ImportError as exc:
        raise MissingDependencyError(
            "writing ONNX graphs for Triton needs onnx, which is not installed: "
            "pip install 'parnet-deploy[triton]'"
        ) from exc
    return onnx
