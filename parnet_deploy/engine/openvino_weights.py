"""Quantised weights as a CPU without VNNI can take them: in 7 bits.

OpenVINO multiplies uint8 with int8 there by an instruction that adds two products in 16 bits, and
does not say when that overflows (`runtime.cpu.int8_overflows`). Weights between -64 and 64 cannot
make it overflow. `engine.onnxruntime_weights` does the same for ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parnet_deploy.errors import BuildError
from parnet_deploy.runtime.cpu import SAFE_WEIGHT
from parnet_deploy.runtime.openvino import load_openvino


def halve_weights(model: Any) -> int:
    """Make each int8 weight of a model half as many steps of twice the size, rounded.

    Args:
        model: an OpenVINO model as it was read; it is changed. Its weights are int8 constants that
            are converted, have no zero point and are multiplied with their scales.

    Returns:
        How many constants were changed; those within the limit are left alone.

    Raises:
        BuildError: an int8 weight that is not written so.
    """
    changed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "i8":
            continue
        values = node.data
        if values.ndim < 2 or np.abs(values.astype(np.int16)).max(initial=0) <= SAFE_WEIGHT:
            continue
        scale = _scale_of(node)
        if len(scale.output(0).get_target_inputs()) != 1:
            raise _unknown(node)
        _replace(scale, 2 * scale.data)
        _replace(node, np.rint(values / 2).astype(np.int8))
        changed += 1
    return changed


def _scale_of(node: Any) -> Any:
    """The constant that a weight's scales are."""
    reader = node
    while reader.get_type_name() in ("Constant", "Convert", "Subtract"):
        readers = list(reader.output(0).get_target_inputs())
        if len(readers) != 1:
            raise _unknown(node)
        reader = readers[0].get_node()
        if reader.get_type_name() == "Subtract" and np.any(_constant(reader, 1, node).data):
            raise _unknown(node)
    if reader.get_type_name() != "Multiply":
        raise _unknown(node)
    return _constant(reader, 1, node)


def _constant(node: Any, index: int, weight: Any) -> Any:
    """What an operator's input is, whatever shape it was given."""
    source = node.input(index).get_source_output().get_node()
    while source.get_type_name() in ("Reshape", "Convert", "Unsqueeze"):
        source = source.input(0).get_source_output().get_node()
    if source.get_type_name() != "Constant":
        raise _unknown(weight)
    return source


def _replace(node: Any, values: Any) -> None:
    openvino = load_openvino()
    constant = openvino.op.Constant(np.ascontiguousarray(values))
    constant.set_friendly_name(node.get_friendly_name())
    openvino.utils.replace_node(node, constant)


def _unknown(weight: Any) -> BuildError:
    return BuildError(
        f"'{weight.get_friendly_name()}' is an int8 weight without scales of its own, and on a CPU "
        "without VNNI 8 bits of it overflow: export the model again with --precision int8"
    )
