"""An engine that does as it is told by its images: it computes for a while, or fails.

Every server runs engines; how one behaves whose engine is slow or fails can only be seen where an
engine is. So a real one gets a few more operators: the largest value among its inputs counts the
rounds of a loop, and beyond a limit it is an index that a table does not have. Answers to ordinary
images stay what they were, to the last bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving_faults.bundles import sign

ROUND = 100.0
"""A loop has as many rounds as this goes into the largest value; images stay below 3."""

FAILS = 1e12
"""From here on a run fails."""

_SIDE = 128
"""Of the matrices that a round multiplies: about a tenth of a millisecond."""


def spin(rounds: int) -> float:
    """The value that makes a run last so many rounds."""
    return ROUND * (rounds + 0.5)


def make_trick(engine: Path, final: Path) -> Path:
    """A copy of an engine bundle of ONNX Runtime whose images tell it what to do.

    Args:
        engine: a whole one, with inputs ``images`` and outputs ``logits``.
        final: folder of the copy; its manifest holds the new graph's sha256.
    """
    shutil.copytree(engine, final)
    graph = final / "whole.onnx"
    add_trick(graph)
    sign(final, graph.name)
    return final


def add_trick(file: Path) -> None:
    """Let a graph's images tell it what to do; weights that lie beside it stay where they are."""
    model = onnx.load(file, load_external_data=False)
    _add(model.graph)
    onnx.save(model, file)


def _add(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for number, name in enumerate(node.output):
            if name == "logits":
                node.output[number] = "trick_logits"
    constants = {
        "trick_fails": np.float32(FAILS),
        "trick_round": np.float32(ROUND),
        "trick_nothing": np.float32(0),
        "trick_beyond": np.int64(7),
        "trick_table": np.zeros(1, np.float32),
        "trick_matrix": np.full((_SIDE, _SIDE), 1e-3, np.float32),
        "trick_go_on": np.bool_(True),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    node = helper.make_node
    graph.node.extend(
        [
            node("ReduceMax", ["images"], ["trick_peak"], keepdims=0),
            node("Greater", ["trick_peak", "trick_fails"], ["trick_is_bad"]),
            node("Cast", ["trick_is_bad"], ["trick_one"], to=TensorProto.INT64),
            node("Mul", ["trick_one", "trick_beyond"], ["trick_index"]),
            node("Gather", ["trick_table", "trick_index"], ["trick_zero"]),
            node("Add", ["trick_peak", "trick_zero"], ["trick_told"]),
            node("Div", ["trick_told", "trick_round"], ["trick_rounds"]),
            node("Cast", ["trick_rounds"], ["trick_count"], to=TensorProto.INT64),
            node(
                "Loop",
                ["trick_count", "trick_go_on", "trick_matrix"],
                ["trick_end"],
                body=_body(),
            ),
            node("ReduceMax", ["trick_end"], ["trick_last"], keepdims=0),
            node("Mul", ["trick_last", "trick_nothing"], ["trick_no_more"]),
            node("Add", ["trick_logits", "trick_no_more"], ["logits"]),
        ]
    )


def _body() -> onnx.GraphProto:
    square = [_SIDE, _SIDE]
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
            helper.make_node("MatMul", ["state", "state"], ["squared"]),
            helper.make_node("Tanh", ["squared"], ["next"]),
        ],
        "round",
        [
            value("number", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, square),
        ],
        [value("goes_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, square)],
    )
