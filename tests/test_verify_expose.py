"""Copies of graphs that show their blocks' values: what is copied stays as it was."""

from __future__ import annotations

from pathlib import Path

import onnx

from parnet_deploy.bundle import MODEL_GRAPH, ModelBundle
from parnet_deploy.verify.expose import expose


def test_the_graph_can_be_opened_while_its_copy_is_there(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    """onnx takes a second link to a file of weights for an attack."""
    for index, file in enumerate(
        (MODEL_GRAPH, *(each.file for each in tiny_bundle.manifest.stages))
    ):
        source = tiny_bundle.file(file)
        made = [name for node in onnx.load(source).graph.node for name in node.output]
        copy, found = expose(source, {made[0]: "float32"}, tmp_path / str(index))
        assert found == (made[0],)
        for path in (source, copy):
            assert onnx.load(path).graph.node, path
