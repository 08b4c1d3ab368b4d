"""The blocks in training form: parallel branches, each with its own batch normalisation.

Paper: section 3.1 and 3.2, figures 2b and A1. Feature maps are (N, C, H, W).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from parnet_deploy.spec import Activation, BlockSpec, ParNetSpec


def activation(name: Activation) -> nn.Module:
    """The non-linearity of that name."""
    return nn.SiLU() if name == "silu" else nn.ReLU()


def global_average(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Join two maps channel by channel, a0 b0 a1 b1 ...; how they lie in memory is kept."""
    if _is_channels_last(a):
        return torch.stack((a.movedim(1, -1), b.movedim(1, -1)), -1).flatten(-2).movedim(-1, 1)
    return torch.stack((a, b), dim=2).flatten(1, 2)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle over groups (ShuffleNet, https://arxiv.org/abs/1707.01083).

    How the map lies in memory is kept: convolutions that found it otherwise than their weights
    would copy it, each for itself.
    """
    grouped: Tensor
    if _is_channels_last(x):
        grouped = x.movedim(1, -1).unflatten(-1, (groups, -1))
        return grouped.transpose(-1, -2).flatten(-2).movedim(-1, 1)
    grouped = x.unflatten(1, (groups, -1))
    return grouped.transpose(1, 2).flatten(1, 2)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class ConvBN(nn.Module):
    """A convolution without bias, and batch normalisation."""

    def __init__(
        self, channels: int, out: int, kernel: int, *, stride: int, groups: int, eps: float
    ) -> None:
        """`channels` to `out` channels; padding keeps the size at stride 1."""
        super().__init__()
        self.conv = nn.Conv2d(
            channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise."""
        y: Tensor = self.bn(self.conv(x))
        return y


class RepBlock(nn.Module):
    """A 3x3 and a 1x1 branch in parallel, with a Skip-Squeeze-Excitation.

    Kind ``skip`` (RepVGG-SSE): ``act(dense(x) + pointwise(x) + id * sigmoid(W gap(id)))`` with
    ``id = BN(x)``. Kinds ``plain`` (Downsampling) and ``fusion``:
    ``act((dense(x) + pointwise(x)) * 2 * sigmoid(W gap(x)))``; where the stride is 2 the pointwise
    branch average-pools first. A fusion normalises and interleaves its two inputs, works in two
    groups and ends with a channel shuffle. Without squeeze, the factors are absent.

    In training, ``conv_dropout`` drops values of ``dense(x) + pointwise(x)``, which the paper says
    of its CIFAR networks ("dropout in the convolution layer at 0.2") without saying where. Wide
    Residual Networks, which it follows there, put it inside the residual block and never on the
    identity, where it hurt (section 2.4, https://arxiv.org/abs/1605.07146). The sum of the
    branches is the residual of this block: both are one convolution once they are folded, and so
    are dropped together; the skip's identity passes whole.
    """

    def __init__(self, block: BlockSpec, spec: ParNetSpec) -> None:
        """Make the block that `block` describes, of a network `spec`."""
        super().__init__()
        channels = block.in_channels * len(block.inputs)
        out, groups, eps = block.out_channels, block.groups, spec.bn_eps
        self.kind, self.stride, self.groups = block.kind, block.stride, groups
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(block.in_channels, eps=eps)
            for _ in (block.inputs if block.kind == "fusion" else ())
        )
        self.dense = ConvBN(channels, out, 3, stride=block.stride, groups=groups, eps=eps)
        self.pointwise = ConvBN(channels, out, 1, stride=1, groups=groups, eps=eps)
        self.identity = nn.BatchNorm2d(out, eps=eps) if block.kind == "skip" else None
        self.squeeze = (
            nn.Conv2d(channels, out, 1, groups=groups, bias=False) if spec.squeeze else None
        )
        self.dropout = nn.Dropout(spec.conv_dropout, inplace=True)
        self.act = activation(spec.activation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, C, H, W) each -> (N, O, H/stride, W/stride).

        What is written in place is no operator's saved input: a training step is bound by memory
        (benchmarks/README.md).
        """
        x = inputs[0]
        if self.kind == "fusion":
            a, b = (norm(value) for norm, value in zip(self.norms, inputs, strict=True))
            x = interleave(a, b)
        y = self.dense(x)
        y += self.pointwise(nn.functional.avg_pool2d(x, 2) if self.stride == 2 else x)
        y = self.dropout(y)
        if self.identity is not None:
            identity = self.identity(x)
            if self.squeeze is None:
                y += identity
            else:
                y.addcmul_(identity, torch.sigmoid(self.squeeze(global_average(identity))))
        elif self.squeeze is not None:
            y = y * (2 * torch.sigmoid(self.squeeze(global_average(x))))
        y = self.act(y)
        return shuffle(y, self.groups) if self.groups > 1 else y


class PointwiseBlock(nn.Module):
    """A 1x1 convolution with batch normalisation: the last block of the CIFAR networks."""

    def __init__(self, block: BlockSpec, spec: ParNetSpec) -> None:
        """Make the block that `block` describes, of a network `spec`."""
        super().__init__()
        self.pointwise = ConvBN(
            block.in_channels, block.out_channels, 1, stride=1, groups=1, eps=spec.bn_eps
        )
        self.act = activation(spec.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H, W)."""
        y: Tensor = self.act(self.pointwise(x))
        return y


class Head(nn.Module):
    """Global average pool, dropout, linear classifier."""

    def __init__(self, block: BlockSpec, spec: ParNetSpec) -> None:
        """Make the head of a network `spec`."""
        super().__init__()
        self.dropout = nn.Dropout(spec.dropout)
        self.linear = nn.Linear(block.in_channels, block.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        y: Tensor = self.linear(self.dropout(global_average(x).flatten(1)))
        return y


class EnsembleHead(nn.Module):
    """An ensemble's head: every member's own pool, dropout and classifier, and their mean.

    What is averaged are the logits (the members' log-odds), not their probabilities. The paper
    does not say which; the mean of logits is linear in the members' features, so that the
    deploy form is one classifier over all of them, and equal.
    """

    def __init__(self, block: BlockSpec, spec: ParNetSpec) -> None:
        """Make the head of an ensemble `spec`, a classifier for each of the block's inputs."""
        super().__init__()
        self.dropout = nn.Dropout(spec.dropout)
        self.linears = nn.ModuleList(
            nn.Linear(block.in_channels, block.out_channels) for _ in block.inputs
        )

    @property
    def classifiers(self) -> tuple[nn.Linear, ...]:
        """Each member's classifier."""
        return tuple(cast("nn.Linear", linear) for linear in self.linears)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, C, H, W) of each member -> (N, classes)."""
        logits = [
            linear(self.dropout(global_average(x).flatten(1)))
            for linear, x in zip(self.classifiers, inputs, strict=True)
        ]
        return torch.stack(logits).mean(0)


def make_block(block: BlockSpec, spec: ParNetSpec) -> nn.Module:
    """The training form of a block."""
    if block.kind == "head":
        return EnsembleHead(block, spec) if len(block.inputs) > 1 else Head(block, spec)
    if block.kind == "pointwise":
        return PointwiseBlock(block, spec)
    return RepBlock(block, spec)
