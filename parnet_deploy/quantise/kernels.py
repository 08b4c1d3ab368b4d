"""What quantising does to the weights: dense, pointwise and folded kernel beside each other.

A block is trained as a dense and a pointwise branch and deployed as one kernel. Their sum has a
range and a distribution of its own: the pointwise branch stands at the centre of the 3x3 kernel
alone (RepVGG, section 3.3, https://arxiv.org/abs/2101.03697), so that a few great weights can set
the steps of many small ones. Whether that costs anything is what is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from parnet_deploy.lowering.weights import quantised
from parnet_deploy.spec import Array
from parnet_deploy.spec.quantisation import QuantisedType

LEAST = 1e-30
"""A ratio of powers that counts as none: -300 dB."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockKernels:
    """The kernels of one block, float64, each with its batch normalisation folded in.

    All are in the deploy form's layout: channels in the order in which they are stored, the
    pointwise kernel padded to 3x3, a plain block's factor 2 in it. So
    ``folded == dense + pointwise``, plus the identity where that is folded in, too.

    Attributes:
        block: the block's name.
        dense: (O, I/groups, 3, 3); None in a pointwise block, which has no such branch.
        pointwise: of the same shape; (O, I, 1, 1) in a pointwise block.
        folded: of the same shape; what is deployed.
    """

    block: str
    dense: Array | None
    pointwise: Array
    folded: Array

    def __post_init__(self) -> None:
        """Refuse kernels that do not belong together.

        Raises:
            ValueError: their shapes differ.
        """
        for kernel in (self.dense, self.pointwise):
            if kernel is not None and kernel.shape != self.folded.shape:
                raise ValueError(
                    f"a kernel of {self.block} is {kernel.shape}, and folded {self.folded.shape}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelNoise:
    """What quantising does to one kernel.

    Attributes:
        greatest: the greatest magnitude among its weights.
        spread: how many times the greatest magnitude of one output channel is that of another:
            of the widest channel, over the narrowest's that is not all zero. What one scale for
            all channels must span.
        per_tensor: signal-to-quantisation-noise ratio in dB with one scale for all channels; None
            where nothing is lost.
        per_channel: likewise, with a scale for each output channel.
    """

    greatest: float
    spread: float
    per_tensor: float | None
    per_channel: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockNoise:
    """What quantising does to the kernels of one block.

    Attributes:
        block: the block's name.
        dense: None where the block has no such branch.
        pointwise: the pointwise branch.
        folded: what is deployed.
    """

    block: str
    dense: KernelNoise | None
    pointwise: KernelNoise
    folded: KernelNoise


def block_noise(kernels: Iterable[BlockKernels], kind: QuantisedType) -> tuple[BlockNoise, ...]:
    """Measure the kernels of every block.

    Args:
        kernels: of the blocks, in order; each is looked at once, so that they need not all be
            in memory.
        kind: type of quantised weights.
    """
    return tuple(
        BlockNoise(
            block=each.block,
            dense=None if each.dense is None else kernel_noise(each.dense, kind),
            pointwise=kernel_noise(each.pointwise, kind),
            folded=kernel_noise(each.folded, kind),
        )
        for each in kernels
    )


def kernel_noise(kernel: Array, kind: QuantisedType) -> KernelNoise:
    """Quantise one kernel both ways, and compare.

    Args:
        kernel: (O, ...).
        kind: type of quantised weights.
    """
    kernel = np.asarray(kernel, np.float64)
    channels = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
    alive = channels[channels > 0]
    return KernelNoise(
        greatest=float(channels.max()),
        spread=float(alive.max() / alive.min()) if len(alive) else 1.0,
        per_tensor=decibels(kernel, requantised(kernel, kind, per_channel=False)),
        per_channel=decibels(kernel, requantised(kernel, kind, per_channel=True)),
    )


def requantised(kernel: Array, kind: QuantisedType, *, per_channel: bool) -> Array:
    """What is left of weights that were quantised as a graph's are, float64.

    Args:
        kernel: (O, ...).
        kind: type of quantised weights.
        per_channel: a scale for each output channel, or one for all.

    Raises:
        ExportError: a weight is not finite.
    """
    found = quantised("kernel", kernel, kind, base="fp32", per_channel=per_channel)
    return found.dequantised()


def decibels(signal: Array, changed: Array) -> float | None:
    """Signal-to-noise ratio ``10 log10(sum s^2 / sum (s' - s)^2)`` in dB.

    Args:
        signal: as it was.
        changed: as it is now; of the same shape.

    Returns:
        None where nothing changed; least where there is no signal is -300.
    """
    signal, changed = np.asarray(signal, np.float64), np.asarray(changed, np.float64)
    noise = float(np.square(changed - signal).sum())
    if noise == 0.0:
        return None
    return float(10 * np.log10(max(float(np.square(signal).sum()) / noise, LEAST)))
