"""Batch normalisation over the batches of all processes."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch normalisation by one over the batches of all processes.

    Names, parameters and running statistics stay. On a GPU it is torch's own, which refuses
    tensors on a CPU; there it is `SynchronisedBatchNorm2d`.

    Args:
        model: it is changed in place.
        device: what it runs on.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for norm in model.modules():
        if type(norm) is nn.BatchNorm2d:
            # The same object with another forward: what holds it, such as a block, keeps it.
            norm.__class__ = SynchronisedBatchNorm2d
    return model


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics, in training, are those of all processes' batches.

    All batches have the same size. Gradients flow through the statistics, as they do in one
    process with the joined batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        if not self.training:
            return super().forward(x)
        dims = (0, 2, 3)
        world = torch.distributed.get_world_size()
        # Shifted by the running mean, which is the same everywhere, the difference of squares
        # loses no digits to a large mean.
        shift = self._mean().detach().clone()
        centred = x.float() - shift[:, None, None]
        sums = torch.stack((centred.mean(dims), centred.square().mean(dims)))
        first, second = _Sum.apply(sums) / world
        variance = second - first.square()
        self._track(first.detach() + shift, variance.detach(), world * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normed = (centred - first[:, None, None]) * scale[:, None, None]
        result: Tensor = (normed + self.bias[:, None, None]).to(x.dtype)
        return result

    def _mean(self) -> Tensor:
        if self.running_mean is None:
            raise ValueError("a synchronised batch normalisation tracks its statistics")
        return self.running_mean

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("a synchronised batch normalisation has running statistics")
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _Sum(torch.autograd.Function):
    """The sum over all processes; what each contributed gets the sum of everyone's gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> Tensor:
        gradient = upstream.clone()
        torch.distributed.all_reduce(gradient)
        return gradient
