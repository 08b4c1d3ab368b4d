"""The blocks in deploy form: one biased convolution each, and what cannot be folded into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parnet_deploy.net.blocks import global_average
from parnet_deploy.net.parnet import BlockGraph
from parnet_deploy.spec import DeployForm


class Squeeze(nn.Module):
    """``sigmoid(W gap(x) + b)`` as (N, O, 1, 1), from pooled channels (N, C, 1, 1)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weight (O, C) and bias (O,) or None."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, C, 1, 1) -> (N, O, 1, 1)."""
        gate = nn.functional.linear(pooled.flatten(1), self.weight, self.bias)
        return torch.sigmoid(gate)[:, :, None, None]


class DeployBlock(nn.Module):
    """``act(conv(x))``, with a gate where there is a squeeze.

    Without skip: ``act(conv(x) * gate(x))``, the factor 2 of the training form being in `conv`.
    With `identity` kept: ``act(conv(x) + id * gate(id))``, ``id = identity(x)``. With it folded
    into `scale` and `shift` (C,): ``act(conv(x) + x * (scale * gate(x)) + shift * gate(x))``.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        act: nn.Module,
        *,
        squeeze: Squeeze | None = None,
        identity: nn.BatchNorm2d | None = None,
        affine: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take the folded parts; `identity` or `affine` only where the block has a skip."""
        super().__init__()
        self.conv, self.act, self.squeeze, self.identity = conv, act, squeeze, identity
        self.register_buffer("scale", affine[0] if affine else None)
        self.register_buffer("shift", affine[1] if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H/stride, W/stride)."""
        y = self.conv(x)
        if self.squeeze is not None and self.identity is not None:
            identity = self.identity(x)
            y = y + identity * self.squeeze(global_average(identity))
        elif self.squeeze is not None and self.scale is not None and self.shift is not None:
            gate = self.squeeze(global_average(x))
            y = y + x * (self.scale[:, None, None] * gate) + self.shift[:, None, None] * gate
        elif self.squeeze is not None:
            y = y * self.squeeze(global_average(x))
        out: Tensor = self.act(y)
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Channels `start` to `stop` of one of a fusion's inputs."""

    input: int
    start: int
    stop: int


class DeployFusion(nn.Module):
    """``act(conv(joined) * gate(joined))`` over its normalised inputs, output left unshuffled.

    ``pieces`` names, group by group, the slices of the two inputs that the group reads; `conv` is
    grouped by two over them, end to end.
    """

    def __init__(
        self,
        norms: nn.ModuleList,
        pieces: tuple[Piece, ...],
        conv: nn.Conv2d,
        act: nn.Module,
        squeeze: Squeeze | None,
    ) -> None:
        """Take the folded parts."""
        super().__init__()
        self.norms, self.pieces, self.conv = norms, pieces, conv
        self.act, self.squeeze = act, squeeze

    def forward(self, *inputs: Tensor) -> Tensor:
        """Two (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        normed = [norm(value) for norm, value in zip(self.norms, inputs, strict=True)]
        joined = torch.cat([normed[p.input][:, p.start : p.stop] for p in self.pieces], dim=1)
        y = self.conv(joined)
        if self.squeeze is not None:
            y = y * self.squeeze(global_average(joined))
        out: Tensor = self.act(y)
        return out


class DeployHead(nn.Module):
    """Global average pool and linear classifier, over all members where it is an ensemble's."""

    def __init__(self, linear: nn.Linear) -> None:
        """Take the classifier: of an ensemble, over its members' channels end to end."""
        super().__init__()
        self.linear = linear

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, C, H, W) each -> (N, classes)."""
        pooled = [global_average(x).flatten(1) for x in inputs]
        y: Tensor = self.linear(torch.cat(pooled, 1))
        return y


class DeployParNet(BlockGraph):
    """A ParNet in deploy form: what `fuse` makes of a `ParNet`."""

    def __init__(self, trained: BlockGraph, form: DeployForm, blocks: list[nn.Module]) -> None:
        """Take the spec of the `trained` network, the form and the folded blocks."""
        super().__init__(trained.spec, blocks)
        self.form = form
