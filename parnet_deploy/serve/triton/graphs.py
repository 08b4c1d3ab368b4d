"""What each model's version folder holds: TensorRT's plan, or a graph with its weights in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from parnet_deploy.bundle import (
    MODEL_GRAPH,
    WEIGHTS,
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
    source = _source(bundle, model)
    _load_onnx()
    return lambda stage, path: _write_graph(source, stage, path, split=bundle.manifest.split)


def graph_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names of a graph's inputs and outputs, each with its element type and shape.

    The type is numpy's, a symbolic size is None.
    """
    onnx = _load_onnx()
    graph = onnx.load(str(path), load_external_data=False).graph
    return _described(onnx, graph.input), _described(onnx, graph.output)


def _described(onnx: Any, values: Iterable[Any]) -> dict[str, Any]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found[value.name] = (dtype.name, shape)
    return found


def _source(bundle: EngineBundle, model: Path | None) -> ModelBundle:
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
    files = {graph.name: graph.file for graph in source.manifest.stages}
    file = files[stage.name] if split else MODEL_GRAPH
    if source.manifest.files[WEIGHTS].bytes > LARGEST:
        raise ServingError(
            f"the weights of {source.path} are larger than one ONNX file can be, {LARGEST} bytes; "
            "build an engine with --backend tensorrt"
        )
    graph = onnx.load(str(source.file(file)), load_external_data=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _load_onnx() -> Any:
    try:
        import onnx
    except ImportError as exc:
        raise MissingDependencyError(
            "writing ONNX graphs for Triton needs onnx, which is not installed: "
            "pip install 'parnet-deploy[export]'"
        ) from exc
    return onnx
