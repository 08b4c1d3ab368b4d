"""Pure folds: tensors in, tensors out, computed in float64.

Every fold is exact in real arithmetic (RepVGG, section 3.3, https://arxiv.org/abs/2101.03697;
ParNet, section 3.1); what is left is rounding when the result is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def bn_affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch normalisation in inference, (C,) float64 each.

    ``bn(x) == scale * x + shift`` with ``scale = weight / sqrt(running_var + eps)``.
    """
    mean, var = bn.running_mean, bn.running_var
    if mean is None or var is None:
        raise ValueError("a batch normalisation without running statistics cannot be folded")
    scale = bn.weight.double() / torch.sqrt(var.double() + bn.eps)
    return scale, bn.bias.double() - mean.double() * scale


def fold_conv_bn(weight: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A convolution without bias and the batch normalisation behind it, as one with a bias.

    Args:
        weight: (O, I/groups, kH, kW).
        bn: over O channels.

    Returns:
        Weight of the same shape and bias (O,), both float64.
    """
    scale, shift = bn_affine(bn)
    return weight.double() * scale.reshape(-1, 1, 1, 1), shift


def pad_1x1(weight: Tensor) -> Tensor:
    """A 1x1 kernel (O, I, 1, 1) as the 3x3 kernel (O, I, 3, 3) with it at its centre."""
    return nn.functional.pad(weight.double(), (1, 1, 1, 1))


def pad_pooled_1x1(weight: Tensor) -> Tensor:
    """A 2x2 average pool and the 1x1 kernel behind it, as one 3x3 kernel of stride 2, padding 1.

    The pool reads pixels 2i and 2i+1. With padding 1, a 3x3 kernel of stride 2 reads 2i-1 to
    2i+1: so a quarter of the weight stands at rows and columns 1 and 2.
    """
    return nn.functional.pad((weight.double() / 4).expand(-1, -1, 2, 2), (1, 0, 1, 0))


def identity_3x3(scale: Tensor) -> Tensor:
    """A per-channel factor (C,) as a 3x3 kernel (C, C, 3, 3)."""
    return pad_1x1(torch.diag(scale.double()).reshape(len(scale), len(scale), 1, 1))


def ungroup_1x1(weight: Tensor, groups: int) -> Tensor:
    """A grouped 1x1 kernel (O, I/groups, 1, 1) as a dense matrix (O, I), zero off the blocks."""
    matrix = weight.double().flatten(1)
    outputs, inputs = len(matrix) // groups, matrix.shape[1]
    dense = matrix.new_zeros(len(matrix), inputs * groups)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = matrix[rows]
    return dense


def permute_inputs(weight: Tensor, order: Tensor, groups: int = 1) -> Tensor:
    """Reorder the input channels of a kernel (O, I/groups, ...) for a reordered input.

    Args:
        weight: the kernel.
        order: (I,): the reordered input's channel k is channel ``order[k]`` of the original. It
            must not move a channel into another group.
        groups: groups of the convolution.

    Raises:
        ValueError: a channel would change its group; no permutation of the weights does that.
    """
    per_group = weight.shape[1]
    outputs = weight.shape[0] // groups
    parts = []
    for group, part in enumerate(torch.split(order, per_group)):
        local = part - group * per_group
        if int(local.min()) < 0 or int(local.max()) >= per_group:
            raise ValueError("a grouped convolution's inputs cannot be permuted across its groups")
        parts.append(weight[group * outputs : (group + 1) * outputs].index_select(1, local))
    return torch.cat(parts)


def mean_of_linears(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """The mean of several classifiers, each of its own features, as one over all of them.

    ``mean_m(W_m x_m + b_m) == [W_1 ... W_M] / M [x_1; ...; x_M] + mean_m(b_m)``.

    Args:
        linears: classifiers of (O, I_m) weights and (O,) biases.

    Returns:
        Weight (O, sum of I_m) and bias (O,), both float64.
    """
    weight = torch.cat([linear.weight.double() for linear in linears], 1)
    bias = torch.stack([linear.bias.double() for linear in linears]).mean(0)
    return weight / len(linears), bias
