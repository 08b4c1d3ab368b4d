"""A network's kernels branch by branch, as the quantisation report looks at them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from parnet_deploy.net import ParNet
from parnet_deploy.net.blocks import PointwiseBlock, RepBlock
from parnet_deploy.net.deploy import DeployBlock, DeployFusion
from parnet_deploy.net.fuse import fuse_block
from parnet_deploy.quantise.kernels import BlockKernels
from parnet_deploy.spec import Array, BlockSpec, DeployForm


def block_kernels(model: ParNet, form: DeployForm | None = None) -> Iterator[BlockKernels]:
    """The kernels of every block with a convolution, one block after the other, float64.

    A fold is linear in the branches: so a branch's own part of the folded kernel is what the fold
    gives where the batch normalisations of all other branches are multiplied by 0, and is in the
    deploy form's layout without a second way to it.

    Args:
        model: the network in training form; it is left as it is.
        form: which of the equivalent forms.
    """
    form = form or DeployForm()
    for block in model.layout:
        module = model.blocks[block.name]
        if isinstance(module, PointwiseBlock):
            folded = _kernel(model.layout, block, module, form)
            yield BlockKernels(block=block.name, dense=None, pointwise=folded, folded=folded)
        elif isinstance(module, RepBlock):
            alone = {
                branch: _kernel(model.layout, block, _only(module, branch), form)
                for branch in ("dense", "pointwise")
            }
            folded = _kernel(model.layout, block, module, form)
            yield BlockKernels(block=block.name, folded=folded, **alone)


def _kernel(
    layout: Sequence[BlockSpec], block: BlockSpec, module: nn.Module, form: DeployForm
) -> Array:
    with torch.no_grad():
        folded = fuse_block(layout, block, module, form)
    if not isinstance(folded, DeployBlock | DeployFusion):
        raise TypeError(f"{block.name} became a {type(folded).__name__}, which has no convolution")
    kernel: Array = folded.conv.weight.double().numpy(force=True)
    return kernel


def _only(module: RepBlock, branch: str) -> RepBlock:
    """A copy in which one branch alone gives anything."""
    copied = copy.deepcopy(module)
    norms = {
        "dense": copied.dense.bn,
        "pointwise": copied.pointwise.bn,
        "identity": copied.identity,
    }
    for name, norm in norms.items():
        if name != branch and norm is not None:
            nn.init.zeros_(norm.weight)
    return copied
