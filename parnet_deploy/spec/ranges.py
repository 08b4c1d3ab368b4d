"""From where a tensor's values lie to how it is quantised, and back: the one way that there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from parnet_deploy.errors import SpecError
from parnet_deploy.spec.quantisation import LIMITS, QuantisedType, Quantiser


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Where a tensor's values lie, or what a quantised one reaches; 0 is among them.

    Attributes:
        low: the least, 0 or less.
        high: the greatest, 0 or more.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what is no range.

        Raises:
            SpecError: an end is not finite, or on the wrong side of 0.
        """
        if not -math.inf < self.low <= 0.0 <= self.high < math.inf:
            raise SpecError(f"a range is finite and 0 lies in it, not {self.low} to {self.high}")

    @property
    def greatest(self) -> float:
        """The greatest magnitude."""
        return max(-self.low, self.high)


def spanning(found: Range, dtype: QuantisedType) -> Quantiser:
    """How a tensor with that range is quantised.

    All in float32, as a training's fake quantisers compute it (`train.qat.ranges`), so that ranges
    that were learned and the same ones that were found on images give the same numbers, to the bit.
    ``int8`` and ``float8_e4m3fn`` reach as far to either side as the range does to one; ``uint8``
    from the one end to the other, with a zero point. Where there is but 0, the scale is 1.

    Args:
        found: where its values lie.
        dtype: what it is to be.
    """
    low, high = np.float32(found.low), np.float32(found.high)
    lowest, highest = (np.float32(end) for end in LIMITS[dtype])
    span, steps = (high - low, highest - lowest) if dtype == "uint8" else (max(-low, high), highest)
    scale = np.float32(span) / np.float32(steps)
    if not scale > 0:
        scale = np.float32(1)
    zero = 0
    if dtype == "uint8":  # a scale among the least float32s is rounded by more than a part of 255
        zero = int(np.clip(np.rint(-low / scale), lowest, highest))
    return Quantiser(dtype=dtype, scale=float(scale), zero_point=zero)


def reach(how: Quantiser) -> Range:
    """The least and the greatest value that a quantiser gives."""
    lowest, highest = LIMITS[how.dtype]
    return Range(
        low=(lowest - how.zero_point) * how.scale, high=(highest - how.zero_point) * how.scale
    )
