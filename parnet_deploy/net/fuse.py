"""fuse: a new network in deploy form, equal to the one it was made from."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parnet_deploy.net.blocks import EnsembleHead, Head, PointwiseBlock, RepBlock
from parnet_deploy.net.deploy import (
    DeployBlock,
    DeployFusion,
    DeployHead,
    DeployParNet,
    Piece,
    Squeeze,
)
from parnet_deploy.net.folds import (
    bn_affine,
    fold_conv_bn,
    identity_3x3,
    mean_of_linears,
    pad_1x1,
    pad_pooled_1x1,
    permute_inputs,
    ungroup_1x1,
)
from parnet_deploy.net.parnet import ParNet
from parnet_deploy.spec import BlockSpec, DeployForm
from parnet_deploy.spec.layout import stored_order


def fuse(model: ParNet, form: DeployForm | None = None) -> DeployParNet:
    """Fold every block of a network into its deploy form.

    Args:
        model: the network in training form; it is left as it is.
        form: which of the equivalent forms.

    Returns:
        A new network in inference mode, of the same dtype, whose logits are the same; the folds
        are computed in float64.
    """
    form = form or DeployForm()
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        blocks = [
            fuse_block(model.layout, block, model.blocks[block.name], form)
            for block in model.layout
        ]
    fused = DeployParNet(model, form, blocks).to(dtype).eval()
    return fused.requires_grad_(False)


def fuse_block(
    layout: Sequence[BlockSpec], block: BlockSpec, module: nn.Module, form: DeployForm
) -> nn.Module:
    """Fold one block into its deploy form, which is computed, and stays, in float64.

    Args:
        layout: the blocks of its network.
        block: which of them it is.
        module: the block in training form; it is left as it is.
        form: which of the equivalent forms.
    """
    specs = {each.name: each for each in layout}
    orders = [_order(specs.get(name), block.in_channels) for name in block.inputs]
    return _fuse_block(module, orders, form)


def _order(source: BlockSpec | None, channels: int) -> Tensor:
    """(C,): channel k of a stored input is channel ``order[k]`` of the training form's."""
    order = stored_order(source) if source else None
    if order is None:
        return torch.arange(channels)
    return torch.argsort(torch.tensor(order))


def _fuse_block(module: nn.Module, orders: list[Tensor], form: DeployForm) -> nn.Module:
    if isinstance(module, Head):
        return DeployHead(copy.deepcopy(module.linear))
    if isinstance(module, EnsembleHead):
        return DeployHead(_mean(module))
    if isinstance(module, PointwiseBlock):
        weight, bias = fold_block(module)
        conv = _conv(permute_inputs(weight, orders[0]), bias)
        return DeployBlock(conv, copy.deepcopy(module.act))
    if not isinstance(module, RepBlock):
        raise TypeError(f"{type(module).__name__} has no deploy form")
    if module.kind == "fusion":
        return _fuse_fusion(module, orders)
    if module.kind == "skip":
        return _fuse_skip(module, form)
    return _fuse_plain(module, orders[0])


def _mean(head: EnsembleHead) -> nn.Linear:
    """An ensemble's classifiers and their mean as one classifier, in float64."""
    weight, bias = mean_of_linears(head.classifiers)
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def fold_block(module: PointwiseBlock | RepBlock) -> tuple[Tensor, Tensor]:
    """The one convolution that a block becomes: kernel and bias, in float64.

    Channels are those of the training form. Gradients flow to kernels and to the weights and
    biases of the batch normalisations, whose running statistics are taken as they are.

    Args:
        module: a block in training form.

    Returns:
        Kernel (O, I / groups, K, K) and bias (O,). The factor 2 of a block with a gate and
        without a skip, and the identity of a skip without a gate are in them.
    """
    if isinstance(module, PointwiseBlock):
        return fold_conv_bn(module.pointwise.conv.weight, module.pointwise.bn)
    weight, bias = merge_branches(module)
    if module.kind != "skip":
        # gate = 2 * sigmoid(...): the 2 goes into the convolution, which the gate multiplies.
        return (weight, bias) if module.squeeze is None else (2 * weight, 2 * bias)
    if module.squeeze is None:
        scale, shift = bn_affine(_identity(module))
        return weight + identity_3x3(scale), bias + shift
    return weight, bias


def _identity(block: RepBlock) -> nn.BatchNorm2d:
    if block.identity is None:
        raise ValueError("a skip block without its identity")
    return block.identity


def merge_branches(block: RepBlock) -> tuple[Tensor, Tensor]:
    """The dense and the pointwise branch of a block as one 3x3 kernel and bias, in float64."""
    dense, bias = fold_conv_bn(block.dense.conv.weight, block.dense.bn)
    small, small_bias = fold_conv_bn(block.pointwise.conv.weight, block.pointwise.bn)
    padded = pad_pooled_1x1(small) if block.stride == 2 else pad_1x1(small)
    return dense + padded, bias + small_bias


def _fuse_plain(block: RepBlock, order: Tensor) -> DeployBlock:
    weight, bias = fold_block(block)
    conv = _conv(permute_inputs(weight, order), bias, block.stride)
    act = copy.deepcopy(block.act)
    if block.squeeze is None:
        return DeployBlock(conv, act)
    squeeze = permute_inputs(ungroup_1x1(block.squeeze.weight, 1), order)
    return DeployBlock(conv, act, squeeze=Squeeze(squeeze, None))


def _fuse_skip(block: RepBlock, form: DeployForm) -> DeployBlock:
    conv = _conv(*fold_block(block))
    act = copy.deepcopy(block.act)
    if block.squeeze is None:
        return DeployBlock(conv, act)
    identity = _identity(block)
    squeeze = ungroup_1x1(block.squeeze.weight, 1)
    if form.identity_bn == "keep":
        gate = Squeeze(squeeze, None)
        return DeployBlock(conv, act, squeeze=gate, identity=copy.deepcopy(identity))
    # gap is linear, so W gap(scale x + shift) = (W scale) gap(x) + W shift.
    scale, shift = bn_affine(identity)
    gate = Squeeze(squeeze * scale, squeeze @ shift)
    return DeployBlock(conv, act, squeeze=gate, affine=(scale, shift))


def _fuse_fusion(block: RepBlock, orders: list[Tensor]) -> DeployFusion:
    """Absorb the interleave of the inputs, and the shuffle that a fusion before left undone."""
    channels = len(orders[0])
    half = channels // 2
    # Of each stored input, the runs of channels that belong to group 0 and to group 1.
    runs = [
        [(index, *run) for index, order in enumerate(orders) for run in _runs(order, group, half)]
        for group in range(2)
    ]
    pieces = tuple(Piece(input=i, start=a, stop=b) for group in runs for i, a, b in group)
    # Where each channel of the pieces, end to end, stands in the interleaved input.
    source = torch.cat(
        [2 * orders[piece.input][piece.start : piece.stop] + piece.input for piece in pieces]
    )
    weight, bias = fold_block(block)
    squeeze = None
    if block.squeeze is not None:
        dense = ungroup_1x1(block.squeeze.weight, 2)
        squeeze = Squeeze(permute_inputs(dense, source), None)
    weight = permute_inputs(weight, source, groups=2)
    conv = _conv(weight, bias, block.stride, groups=2)
    norms = nn.ModuleList(
        _permute_bn(norm, order) for norm, order in zip(block.norms, orders, strict=True)
    )
    return DeployFusion(norms, pieces, conv, copy.deepcopy(block.act), squeeze)


def _runs(order: Tensor, group: int, half: int) -> list[tuple[int, int]]:
    """Contiguous runs of stored channels whose training channel lies in a half of them all."""
    inside = [False, *((order // half) == group).tolist(), False]
    edges = [i for i in range(len(order) + 1) if inside[i] != inside[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _permute_bn(norm: nn.Module, order: Tensor) -> nn.BatchNorm2d:
    permuted = copy.deepcopy(norm)
    if not isinstance(permuted, nn.BatchNorm2d):
        raise TypeError(f"a fusion's input norm is a BatchNorm2d, not {type(norm).__name__}")
    for tensor in (permuted.weight, permuted.bias, permuted.running_mean, permuted.running_var):
        if tensor is not None:
            tensor.data = tensor.data[order]
    return permuted


def _conv(weight: Tensor, bias: Tensor | None, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    out, per_group, size, _ = weight.shape
    conv = nn.Conv2d(
        per_group * groups,
        out,
        size,
        stride,
        padding=size // 2,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv
