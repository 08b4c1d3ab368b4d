"""Quantised weights of an ONNX graph as a CPU without VNNI can take them: in 7 bits.

ONNX Runtime multiplies uint8 with int8 there by an instruction that overflows without a word
(`runtime.cpu.int8_overflows`). Its own way out, ``session.x64quantprecision``, makes the weights
uint8, and is slower (docs/engines.md). `engine.openvino_weights` does the same for OpenVINO, which
has no such way.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parnet_deploy.errors import BuildError, MissingDependencyError
from parnet_deploy.runtime.cpu import SAFE_WEIGHT

if TYPE_CHECKING:
    import onnx


def with_halved_weights(graph: Path, folder: Path) -> Path:
    """Write a graph whose int8 weights are half as many steps of twice the size, rounded.

    Args:
        graph: ONNX file, its weights below its own folder. Its int8 weights are constants that
            DequantizeLinear reads, without a zero point.
        folder: where the other graph is written, with its weights in it.

    Returns:
        The file; `graph` itself where no weight is beyond the limit.

    Raises:
        BuildError: the file cannot be read, or an int8 weight is not written so.
        MissingDependencyError: the onnx package is not installed.
    """
    try:
        import onnx
    except ImportError as exc:
        raise MissingDependencyError(
            f"building an int8 engine for a CPU without VNNI reads its graph, and onnx cannot be "
            f"imported ({exc}): pip install onnx; running one does not need it"
        ) from exc
    try:
        model = onnx.load(graph)
    except Exception as exc:  # its parser's exceptions share no base class
        raise BuildError(f"cannot read {graph.name} as an ONNX graph: {exc}") from exc
    if not halve_weights(model):
        return graph
    written = folder / graph.name
    onnx.save(model, written)
    return written


def halve_weights(model: onnx.ModelProto) -> int:
    """Halve every int8 weight of a graph that is beyond the limit.

    Args:
        model: with all its weights; it is changed.

    Returns:
        How many weights were changed.

    Raises:
        BuildError: an int8 weight without scales of its own.
    """
    from onnx.numpy_helper import from_array, to_array

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    changed = 0
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        weight = constants[node.input[0]]
        values = to_array(weight)
        beyond = np.abs(values.astype(np.float64)).max(initial=0) > SAFE_WEIGHT
        if values.dtype != np.int8 or not beyond:
            continue
        scale = constants.get(node.input[1])
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        shifted = zero is not None and bool(np.any(to_array(zero)))
        if scale is None or shifted or readers[scale.name] + readers[weight.name] != 2:
            raise BuildError(
                f"'{weight.name}' is an int8 weight without scales of its own, and on a CPU "
                "without VNNI 8 bits of it overflow: export the model again with --precision int8"
            )
        old = to_array(scale)
        scale.CopyFrom(from_array((2 * old).astype(old.dtype), scale.name))
        weight.CopyFrom(from_array(np.rint(values / 2).astype(np.int8), weight.name))
        changed += 1
    return changed
