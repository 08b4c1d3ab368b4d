"""Graphs that show their blocks' values: copies in which those are outputs too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from parnet_deploy.errors import VerificationError


def expose(source: Path, wanted: Mapping[str, str], folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Write a copy of a graph that gives some of its inner tensors beside its outputs.

    An optimised graph has lost some of its tensors: those stay unseen.

    Args:
        source: ONNX file; external data lies beside or below it.
        wanted: numpy's names of the types of the tensors that are wanted, by the tensors' names.
        folder: an empty folder for the copy; weights are linked into it, not copied, where the
            file system allows that.

    Returns:
        The copy, and those of the names that it gives.

    Raises:
        VerificationError: the graph cannot be read, or points outside its folder.
    """
    try:
        model = onnx.load(source, load_external_data=False)
    except Exception as exc:  # its parser's exceptions share no base class
        raise VerificationError(f"cannot read {source} as an ONNX graph: {exc}") from exc
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    given = {output.name for output in graph.output}
    found = tuple(name for name in wanted if name in made)
    for name in found:
        if name not in given:
            element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(wanted[name]))
            value = onnx.helper.make_tensor_value_info(name, element, None)
            graph.output.append(value)
    folder.mkdir(parents=True, exist_ok=True)
    for location in {_location(tensor) for tensor in graph.initializer} - {None}:
        _bring(source.parent, folder, str(location))
    copy = folder / source.name
    onnx.save(model, copy)
    return copy, found


def _location(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next(str(entry.value) for entry in tensor.external_data if entry.key == "location")


def _bring(source: Path, folder: Path, location: str) -> None:
    """Link a file of weights, or copy it where it lies on another file system."""
    pure = PurePosixPath(location)
    if pure.is_absolute() or ".." in pure.parts:
        raise VerificationError(f"a graph in {source} has its weights outside itself: {location}")
    target = folder / location
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source / location, target)
    except OSError:
        shutil.copyfile(source / location, target)
