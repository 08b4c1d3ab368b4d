"""Depth, parameters and operations, derived from the layout."""

from __future__ import annotations

from dataclasses import dataclass

from parnet_deploy.spec.layout import IMAGES, BlockSpec, layout
from parnet_deploy.spec.parnet import ParNetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What a network costs.

    Attributes:
        depth: longest path of convolutions and linear layers.
        parameters_training: parameters of the training form.
        parameters_fused: parameters with each block's branches folded into one biased 3x3; the
            skip's and the fusion's batch normalisations and the squeezes kept.
        flop_fused: operations of the fused form for one image of the spec's size, two per
            multiply-add, in convolutions and linear layers.
    """

    depth: int
    parameters_training: int
    parameters_fused: int
    flop_fused: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCounts:
    """What one block costs in fused form, in numbers; biases and normalisations left out.

    Attributes:
        reads: channels of all its inputs together.
        weights: of its convolution or linear layer.
        squeeze: weights of its squeeze, 0 where it has none.
        pixels: of its output; 1 for the head.
    """

    reads: int
    weights: int
    squeeze: int
    pixels: int

    @property
    def operations(self) -> int:
        """For one image, two per multiply-add."""
        return 2 * (self.weights * self.pixels + self.squeeze)


def depth(spec: ParNetSpec) -> int:
    """Longest path of convolutions and linear layers (a squeeze runs beside its convolution)."""
    return depths(spec)["head"]


def depths(spec: ParNetSpec) -> dict[str, int]:
    """Depth of every block by its name: 1 for what reads the image."""
    deepest = {IMAGES: 0}
    for block in layout(spec):
        deepest[block.name] = 1 + max(deepest[value] for value in block.inputs)
    return {name: value for name, value in deepest.items() if name != IMAGES}


def count(spec: ParNetSpec) -> Counts:
    """Count a network's depth, parameters and operations."""
    blocks = layout(spec)
    return Counts(
        depth=depth(spec),
        parameters_training=sum(_parameters(spec, block, fused=False) for block in blocks),
        parameters_fused=sum(_parameters(spec, block, fused=True) for block in blocks),
        flop_fused=sum(count_block(spec, block).operations for block in blocks),
    )


def count_block(spec: ParNetSpec, block: BlockSpec) -> BlockCounts:
    """Count one block of a network."""
    joined = block.in_channels * len(block.inputs)
    matrix = joined // block.groups * block.out_channels
    convolved = block.kind not in ("head", "pointwise")
    height, width = spec.image_size
    head = block.kind == "head"
    return BlockCounts(
        reads=joined,
        weights=9 * matrix if convolved else matrix,
        squeeze=matrix if convolved and spec.squeeze else 0,
        pixels=1 if head else (height // block.scale) * (width // block.scale),
    )


def _parameters(spec: ParNetSpec, block: BlockSpec, *, fused: bool) -> int:
    counts, out = count_block(spec, block), block.out_channels
    if block.kind == "head":  # an ensemble's members have a bias each, which folds into one
        return counts.weights + (out if fused else len(block.inputs) * out)
    norms = 2 * counts.reads if block.kind in ("skip", "fusion") else 0
    kept = counts.weights + counts.squeeze + norms
    if fused:
        return kept + out
    branch = counts.weights // 9 + 2 * out if block.kind != "pointwise" else 0
    return kept + 2 * out + branch
