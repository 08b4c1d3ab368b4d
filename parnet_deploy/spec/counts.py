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
        flop_fused=sum(_flop(spec, block) for block in blocks),
    )


def _parameters(spec: ParNetSpec, block: BlockSpec, *, fused: bool) -> int:
    joined = block.in_channels * len(block.inputs)
    out = block.out_channels
    if block.kind == "head":  # an ensemble's members have a bias each, which folds into one
        return joined * out + (out if fused else len(block.inputs) * out)
    pointwise = joined // block.groups * out
    if block.kind == "pointwise":
        return pointwise + (out if fused else 2 * out)
    branches = 9 * pointwise + out if fused else 9 * pointwise + 2 * out + pointwise + 2 * out
    norms = {"skip": 2 * joined, "fusion": 2 * joined}.get(block.kind, 0)
    return branches + norms + (pointwise if spec.squeeze else 0)


def _flop(spec: ParNetSpec, block: BlockSpec) -> int:
    joined = block.in_channels * len(block.inputs)
    pointwise = 2 * (joined // block.groups) * block.out_channels
    if block.kind == "head":
        return pointwise
    height, width = spec.image_size
    pixels = (height // block.scale) * (width // block.scale)
    if block.kind == "pointwise":
        return pointwise * pixels
    return 9 * pointwise * pixels + (pointwise if spec.squeeze else 0)
