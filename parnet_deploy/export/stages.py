"""The cuts: one graph per stage, taken out of the whole graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from parnet_deploy.bundle import CutContract, GraphStage
from parnet_deploy.export.builder import variable
from parnet_deploy.export.graph import ExportOptions, images_spec, value_spec
from parnet_deploy.spec import IMAGES, LOGITS, ParNetSpec, StageSpec, TensorSpec, cuts, layout


def contracts(spec: ParNetSpec, options: ExportOptions) -> dict[str, TensorSpec]:
    """The contract of every value that can cross a cut, by its name in the layout."""
    result = {IMAGES: images_spec(spec, options)}
    for block in layout(spec):
        name = LOGITS if block.kind == "head" else block.name
        result[name] = value_spec(spec, block, options)
    return result


def describe_stage(stage: StageSpec, contract: Mapping[str, TensorSpec]) -> GraphStage:
    """A stage with its file and the contracts of what it reads and gives."""
    return GraphStage(
        name=stage.name,
        file=f"stages/{stage.name}.onnx",
        blocks=stage.blocks,
        inputs=tuple(contract[name] for name in stage.inputs),
        outputs=tuple(contract[name] for name in stage.outputs),
    )


def describe_cuts(
    stages: tuple[StageSpec, ...], contract: Mapping[str, TensorSpec]
) -> tuple[CutContract, ...]:
    """The contracts of all cuts, with their bytes for one image."""
    return tuple(
        CutContract(
            tensor=contract[cut.tensor],
            bytes=contract[cut.tensor].image_nbytes,
            source=cut.source,
            target=cut.target,
        )
        for cut in cuts(stages)
    )


def cut_stage(whole: gs.Graph, stage: GraphStage) -> gs.Graph:
    """The part of a graph that makes a stage's outputs from its inputs.

    Args:
        whole: the whole graph; it is left as it is.
        stage: the stage, whose inputs and outputs are tensors of that graph.

    Returns:
        A graph that shares the whole one's weights.
    """
    graph = whole.copy()
    graph.name = f"{whole.name}-{stage.name}"
    tensors = graph.tensors()
    for spec in stage.inputs:
        if spec.name not in {tensor.name for tensor in graph.inputs}:
            tensors[spec.name].inputs.clear()  # made elsewhere: here it comes from outside
    graph.inputs = [_typed(tensors[spec.name], spec) for spec in stage.inputs]
    graph.outputs = [_typed(tensors[spec.name], spec) for spec in stage.outputs]
    return graph.cleanup().toposort()


def _typed(tensor: gs.Variable, spec: TensorSpec) -> gs.Variable:
    template = variable(spec)
    tensor.dtype, tensor.shape = template.dtype, template.shape
    return tensor
