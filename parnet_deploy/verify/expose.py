"""Graphs that show their blocks' values: copies in which those are outputs too."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 and float8_e4m3fn by their names from here on
import numpy as np
import onnx

from parnet_deploy.errors import VerificationError
from parnet_deploy.lowering import EXACTLY, emulate
from parnet_deploy.verify.written import load_graph, location_of

GIVEN = ".given"
"""Behind the name of a tensor that comes from outside, where the graph makes it, too."""


def expose(
    source: Path,
    wanted: Mapping[str, str],
    folder: Path,
    *,
    emulated: bool = False,
    given: Mapping[str, str] | None = None,
) -> tuple[Path, tuple[str, ...]]:
    """Write a copy of a graph that gives some of its inner tensors beside its outputs.

    An optimised graph has lost some of its tensors: those stay unseen.

    Args:
        source: ONNX file; external data lies beside or below it.
        wanted: numpy's names of the types of the tensors that are wanted, by the tensors' names.
        folder: an empty folder for the copy, its weights included.
        emulated: whether the copy computes in float32, with every rounding written out
            (`lowering.emulate`); its weights are then in it.
        given: types of tensors, by name, that the copy reads from outside (as ``NAME.given``),
            wherever it has them from otherwise. So each block works on what it is told that those
            before it gave. The graph makes them, too.

    Returns:
        The copy, and those of the names that it gives.

    Raises:
        VerificationError: the graph cannot be read, or points outside its folder.
    """
    model = load_graph(source, weights=emulated)
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    outputs = {output.name for output in graph.output}
    found = tuple(name for name in wanted if name in made)
    graph.output.extend(_value(name, wanted[name]) for name in found if name not in outputs)
    if given:
        _read_from_outside(graph, {name: kind for name, kind in given.items() if name in made})
    folder.mkdir(parents=True, exist_ok=True)
    external = onnx.TensorProto.EXTERNAL
    tensors = [tensor for tensor in graph.initializer if tensor.data_location == external]
    for location in {location_of(tensor, source) for tensor in tensors}:
        _bring(source.parent, folder, location)
    copy = folder / source.name
    if emulated:
        try:
            model = emulate(model, EXACTLY)
        except onnx.shape_inference.InferenceError as exc:
            said = str(exc).strip().splitlines()[-1]
            raise VerificationError(f"the types in {source} contradict each other: {said}") from exc
    onnx.save(model, copy)
    return copy, found


def _value(name: str, dtype: str) -> onnx.ValueInfoProto:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, element, None)


def _read_from_outside(graph: onnx.GraphProto, given: Mapping[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in given:
                node.input[index] = f"{name}{GIVEN}"
    graph.input.extend(_value(f"{name}{GIVEN}", kind) for name, kind in given.items())


def _bring(source: Path, folder: Path, location: str) -> None:
    """Copy a file of weights.

    A link would do, but onnx opens no weights that have a second one: while a bundle is verified,
    and for ever where that was killed, nothing else could read it.
    """
    target = folder / location
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / location, target)
