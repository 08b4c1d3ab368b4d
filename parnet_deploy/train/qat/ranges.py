"""Where activations' values lie, while a network is trained, and their fake quantisers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed
from torch import Tensor, nn

from parnet_deploy.spec.quantisation import LIMITS, Scheme
from parnet_deploy.spec.ranges import Range
from parnet_deploy.train.qat.rounding import fake_quantise, usable_scale

LEAST_PART = 0.01
"""What a batch moves a range at least, in parts of the way: the mean of the first hundred batches,
and a moving average from there on."""


class TensorRanges(nn.Module):
    """The ranges of some tensors, by name.

    A range is the mean over batches of the least and of the greatest value in a batch, so that one
    outlier among all images does not stretch it; over all processes' batches where there are
    several. Ranges are buffers: they are saved, restored and averaged with the network.

    Attributes:
        low: (T,) float32, 0 or less.
        high: (T,) float32, 0 or more.
        seen: (T,) int64: batches that a range is made of.
        moving: whether ranges follow the values of training batches.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, names: Iterable[str], quantised: Iterable[str], scheme: Scheme) -> None:
        """Begin with no range.

        Args:
            names: the tensors whose ranges are found.
            quantised: those of them that are quantised.
            scheme: into what.
        """
        super().__init__()
        self.numbers = {name: number for number, name in enumerate(names)}
        self.quantised = frozenset(quantised)
        self.scheme = scheme
        self.moving = True
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(len(self.numbers)))
        self.register_buffer("seen", torch.zeros(len(self.numbers), dtype=torch.int64))

    def forward(self, name: str, x: Tensor) -> Tensor:
        """A tensor as its quantised form stands for it; its range follows it first, if it may."""
        number = self.numbers[name]
        if self.training and self.moving:
            self._follow(number, x.detach())
        if name not in self.quantised:
            return x
        scale, zero_point = self._quantiser(number)
        return fake_quantise(x, scale, zero_point, self.scheme.activation)

    def found(self) -> Mapping[str, Range]:
        """Every tensor's range.

        Raises:
            ValueError: one was never seen.
        """
        if not bool((self.seen > 0).all()):
            raise ValueError("there is a tensor that no training step has seen")
        low, high = self.low.tolist(), self.high.tolist()
        return {name: Range(low=low[n], high=high[n]) for name, n in self.numbers.items()}

    def _follow(self, number: int, x: Tensor) -> None:
        least, greatest = torch.aminmax(x)
        ends = torch.stack((-least, greatest)).clamp_(min=0.0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(ends, op=torch.distributed.ReduceOp.MAX)
        seen = self.seen[number].add_(1)
        part = torch.clamp(1.0 / seen, min=LEAST_PART)
        self.low[number].lerp_(-ends[0], part)
        self.high[number].lerp_(ends[1], part)

    def _quantiser(self, number: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, () each: `spec.ranges.spanning`, as the graph has it."""
        low, high = self.low[number], self.high[number]
        lowest, highest = LIMITS[self.scheme.activation]
        unsigned = self.scheme.activation == "uint8"
        span = high - low if unsigned else torch.maximum(-low, high)
        scale = usable_scale(span / highest, self.scheme.base)
        if not unsigned:
            return scale, torch.zeros_like(scale)
        return scale, torch.round(-low / scale).clamp(lowest, highest)
