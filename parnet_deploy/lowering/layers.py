"""The convolutions of a graph that can be quantised, and the tensors whose ranges that takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from parnet_deploy.errors import UsageError
from parnet_deploy.spec.quantisation import Quantisation, Scheme

CONV = ".conv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One block's convolution in a float32 graph; all are names.

    Attributes:
        block: the block, and the tensor that is its output.
        node: the convolution.
        weight: its kernel, (O, I / groups, K, K).
        input: the tensor that it reads.
        output: the tensor that it gives, before anything else in its block.
    """

    block: str
    node: str
    weight: str
    input: str
    output: str


def layers(graph: gs.Graph) -> tuple[Layer, ...]:
    """The convolutions that can be quantised: one of every block but the head, in graph order.

    Args:
        graph: in float32, in deploy form; squeezes are no layers.
    """
    return tuple(
        Layer(
            block=node.name.removesuffix(CONV),
            node=node.name,
            weight=node.inputs[1].name,
            input=node.inputs[0].name,
            output=node.outputs[0].name,
        )
        for node in graph.nodes
        if node.op == "Conv" and is_layer(node.name)
    )


def is_layer(node: str) -> bool:
    """Whether a node's name is that of a block's convolution."""
    return node.endswith(CONV) and "." not in node.removesuffix(CONV)


def observed(graph: gs.Graph, scheme: Scheme, kept: Collection[str] = ()) -> tuple[str, ...]:
    """The tensors that need a quantiser, in graph order.

    They are what the quantised convolutions read; the blocks' values that a fusion joins to what
    its convolution reads, since these cross cuts; and where the scheme says so, what the
    convolutions give.

    Args:
        graph: in float32; sorted.
        scheme: what is quantised, and into what.
        kept: blocks whose convolution is not quantised.

    Raises:
        UsageError: there is no such block to keep.
    """
    found = layers(graph)
    check_kept(found, kept)
    tensors = graph.tensors()
    blocks = {layer.block for layer in found}
    names: dict[str, None] = {}
    for layer in found:
        if layer.block in kept:
            continue
        names |= dict.fromkeys(_joined(tensors[layer.input], blocks))
        names[layer.input] = None
        if scheme.outputs:
            names[layer.output] = None
    return tuple(names)


def keeping(graph: gs.Graph, quantisation: Quantisation, kept: Sequence[str]) -> Quantisation:
    """The same quantisation with these blocks kept, without what only they needed.

    Args:
        graph: in float32.
        quantisation: with a quantiser for every tensor that the other blocks need.
        kept: blocks whose convolution is not quantised.

    Raises:
        UsageError: there is no such block to keep.
    """
    needed = observed(graph, quantisation.scheme, kept)
    tensors = {name: found for name, found in quantisation.tensors.items() if name in needed}
    return replace(quantisation, kept=tuple(kept), tensors=tensors)


def check_kept(found: Sequence[Layer], kept: Collection[str]) -> None:
    """Refuse names of blocks that have no layer.

    Raises:
        UsageError: there is no such block to keep.
    """
    blocks = [layer.block for layer in found]
    if unknown := sorted(set(kept) - set(blocks)):
        raise UsageError(f"there is no layer '{unknown[0]}' to keep; there are {', '.join(blocks)}")


def _joined(tensor: gs.Variable, blocks: Collection[str]) -> list[str]:
    """The blocks' values that a tensor is joined of; none where it is one, or is read as images."""
    if tensor.name in blocks:
        return []
    values: dict[str, None] = {}
    waiting = [tensor]
    while waiting:
        for node in waiting.pop(0).inputs:
            for read in node.inputs:
                if read.name in blocks:
                    values[read.name] = None
                elif isinstance(read, gs.Variable):
                    waiting.append(read)
    return list(values)
