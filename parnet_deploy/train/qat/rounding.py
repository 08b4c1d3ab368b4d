"""Fake quantisers: what a quantised value stands for, and a gradient as if nothing were rounded.

Straight-through estimator (Bengio et al., https://arxiv.org/abs/1308.3432): the gradient passes
where a value lies within the range, and ends where it was clipped. torch's own operators multiply
by the reciprocal of a scale, where ONNX's QuantizeLinear divides by the scale: near a tie the two
give different steps. They also take longer in the forward pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from parnet_deploy.spec.quantisation import LIMITS, QuantisedType, Scheme

Base = Literal["fp32", "fp16"]

# What an activation of a type can be: QuantizeLinear clips at the type's own ends, so that int8
# has -128, too, which the scale does not count on, and a weight never is.
_ENDS: dict[QuantisedType, tuple[float, float]] = {**LIMITS, "int8": (-128.0, 127.0)}


def fake_quantise(x: Tensor, scale: Tensor, zero_point: Tensor, dtype: QuantisedType) -> Tensor:
    """A tensor as its quantised form stands for it.

    Args:
        x: any shape, floating-point; all is computed in its dtype.
        scale: positive; of a shape that broadcasts to that of `x`.
        zero_point: whole numbers, of the same shape; 0 unless the type is ``uint8``.
        dtype: of the quantised tensor.
    """
    rounded: Tensor = _FakeQuantise.apply(x, scale, zero_point, dtype, _ENDS[dtype])
    return rounded


def fake_quantise_kernel(weight: Tensor, scheme: Scheme) -> Tensor:
    """A kernel as its quantised form stands for it, with a scale for each output channel.

    In float64, as `lowering.weights` quantises.

    Args:
        weight: (O, ...) as it is deployed: folded, float32.
        scheme: into what.

    Returns:
        The same shape and dtype.
    """
    scale = kernel_scale(weight.detach(), scheme).double()
    kind = scheme.weight
    zero = torch.zeros_like(scale)
    quantised: Tensor = _FakeQuantise.apply(weight.double(), scale, zero, kind, LIMITS[kind])
    return quantised.to(weight.dtype)


def kernel_scale(weight: Tensor, scheme: Scheme) -> Tensor:
    """The scale of each output channel of a kernel (O, ...): ``max|w| / limit``, (O, 1, ...)."""
    greatest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
    return usable_scale(greatest.double() / LIMITS[scheme.weight][1], scheme.base).to(weight.dtype)


def usable_scale(scale: Tensor, base: Base) -> Tensor:
    """A scale as the graph has it: 1 where it is 0, and a number of the base's type.

    `lowering.weights.rounded_scale` in torch, which itself would round float64 to float32 first
    and then to float16. The dtype stays.
    """
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if base == "fp32":
        return scale.float().to(scale.dtype)
    exponent = torch.frexp(scale).exponent  # of m * 2**e with m in [1/2, 1)
    step = torch.ldexp(torch.ones_like(scale), (exponent - 11).clamp(min=-24))
    return torch.round(scale / step).clamp(min=1) * step


class _FakeQuantise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        dtype: QuantisedType,
        ends: tuple[float, float],
    ) -> Tensor:
        low, high = ends
        steps = x / scale
        if dtype == "float8_e4m3fn":
            within = (steps >= low) & (steps <= high)
            steps = steps.clamp_(low, high).to(torch.float8_e4m3fn).to(x.dtype)
        else:
            steps = steps.round_().add_(zero_point)
            within = (steps >= low) & (steps <= high)
            steps = steps.clamp_(low, high).sub_(zero_point)
        ctx.save_for_backward(within)
        return steps.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (within,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's stub lacks it
        return upstream * within, None, None, None, None
