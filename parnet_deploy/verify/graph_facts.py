"""What a model bundle's graphs say of their types, read from the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from parnet_deploy.bundle import MODEL_GRAPH, GraphStage, ModelBundle
from parnet_deploy.lowering import layer_types
from parnet_deploy.lowering.types import HEAD
from parnet_deploy.net import DeployParNet
from parnet_deploy.spec import layout
from parnet_deploy.spec.quantisation import base_of
from parnet_deploy.verify.asked import asked_types
from parnet_deploy.verify.constants import constant_problems, read_constants
from parnet_deploy.verify.folded import WEIGHT, Constants, evened_out, folded_constants
from parnet_deploy.verify.problems import Problem
from parnet_deploy.verify.written import Written, load_graph, read_written


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GraphFacts:
    """What one graph of a bundle says of its types.

    Attributes:
        file: its path in the bundle.
        blocks: the blocks in it.
        reads: names of what it reads.
        types: precision of each block's convolution.
        written: how it is quantised; None where the manifest says that it is not.
        constants: what is wrong with its other constants.
        counted: how many operators have such constants.
        folded: what the checkpoint folds to, its channels scaled as the whole graph's are.
    """

    file: str
    blocks: tuple[str, ...]
    reads: tuple[str, ...]
    types: Mapping[str, str]
    written: Written | None
    constants: tuple[Problem, ...]
    counted: int
    folded: Constants


def look_into(model: ModelBundle, fused: DeployParNet) -> tuple[GraphFacts, ...]:
    """What the bundle's graphs say: the whole one's first, then the stages'.

    Args:
        model: the bundle.
        fused: its checkpoint's network, in the graphs' deploy form.

    Raises:
        VerificationError: a graph cannot be read.
    """
    manifest = model.manifest
    whole = GraphStage(
        name="whole",
        file=MODEL_GRAPH,
        blocks=tuple(block.name for block in layout(manifest.spec)),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
    )
    first = _facts(model, whole, fused, None)
    rest = (_facts(model, stage, fused, first.folded) for stage in manifest.stages)
    return (first, *rest)


def _facts(
    model: ModelBundle, stage: GraphStage, fused: DeployParNet, folded: Constants | None
) -> GraphFacts:
    """Look into one graph.

    Args:
        model: the bundle.
        stage: the graph.
        fused: the checkpoint's network.
        folded: what the checkpoint folds to, scaled as the whole graph is; None for that itself.
    """
    manifest = model.manifest
    graph: onnx.ModelProto = load_graph(model.file(stage.file))
    written = None if manifest.quantisation is None else read_written(graph)
    found = read_constants(graph)
    if folded is None:
        every = {node: dict(roles) for node, roles in found.known.items()}
        for block, kernel in ({} if written is None else written.kernels).items():
            every.setdefault(f"{block}.conv", {})[WEIGHT] = kernel.dequantised()
        exact = folded_constants(fused, manifest.preprocessing)
        folded = evened_out(exact, every, fused, manifest)
    base = base_of(manifest.precision, manifest.quantisation)
    asked = asked_types(manifest.spec, manifest.precision, manifest.quantisation)
    types = {name: asked[name] if name == HEAD else base for name in stage.blocks}
    return GraphFacts(
        file=stage.file,
        blocks=stage.blocks,
        reads=tuple(spec.name for spec in stage.inputs),
        types=layer_types(graph),
        written=written,
        constants=tuple(constant_problems(found, folded, types, manifest.quantisation, stage.file)),
        counted=len(found.known),
        folded=folded,
    )
