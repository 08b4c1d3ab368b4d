"""How often which values occur in a tensor: counts in bins that widen as the range grows.

The bins reach from ``-2**exponent`` to ``2**exponent``, the least power of two that all values lie
within. Where a value lies beyond, two neighbours (or four, eight ...) become one bin: no count is
moved between bins or lost, and what comes out does not depend on the order in which values came.
Frameworks that stretch a histogram by interpolation (torch's ``HistogramObserver``) lose both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from parnet_deploy.spec import Array

BINS = 2**14
"""Bins to either side of zero. As the greatest value lies in the outer half of them, a step of int8
over the whole range is at least 64 bins wide, so that ranges of a thirty-second can be judged."""

_LEAST = 2.0**-101
"""Smaller values share the bins at zero: there is nothing that a scale could tell from it. So do,
beside a great one, negative values so small that their ratio to it is no float32."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Histogram:
    """Counts of a tensor's values.

    Attributes:
        exponent: the bins reach from ``-2**exponent`` to ``2**exponent``.
        counts: (2 * `BINS`,) int64; bin ``BINS`` begins at zero, and every bin holds its lower end.
        low: the least value that was seen, exactly.
        high: the greatest.
    """

    exponent: int
    counts: Array
    low: float
    high: float

    @classmethod
    def of(cls, values: Array) -> Histogram:
        """Count an array.

        Args:
            values: of any shape, at least one, of a float type that float32 holds.

        Raises:
            ValueError: a value is infinite or not a number.
        """
        x = np.asarray(values, np.float32).reshape(-1)
        low, high = float(x.min()), float(x.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # min and max of NaN are NaN
            raise ValueError("values are not finite")
        _, exponent = math.frexp(max(-low, high, _LEAST))  # 2**exponent is greater
        scaled = x * np.float32(BINS / 2.0**exponent)  # exact: a power of two
        places = np.floor(scaled, out=scaled).astype(np.intp)
        places += BINS
        counts = np.bincount(places, minlength=2 * BINS)
        return cls(exponent=exponent, counts=counts, low=low, high=high)

    def __add__(self, other: Histogram) -> Histogram:
        """The values of both."""
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            exponent=exponent,
            counts=_widened(self, exponent) + _widened(other, exponent),
            low=min(self.low, other.low),
            high=max(self.high, other.high),
        )

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent / BINS

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def greatest(self) -> float:
        """The greatest magnitude that was seen, exactly."""
        return max(-self.low, self.high)

    @property
    def magnitudes(self) -> Array:
        """(`BINS`,) int64: counts of the values' magnitudes, in bins that begin at zero."""
        folded: Array = self.counts[BINS:] + self.counts[BINS - 1 :: -1]
        return folded

    def filled(self) -> tuple[Array, Array]:
        """Middle and count of the bins that are not empty, in ascending order.

        Returns:
            (M,) float64 and (M,) float64. The middle is moved to the least or greatest value where
            it lies beyond.
        """
        (places,) = np.nonzero(self.counts)
        middles = (places - BINS + 0.5) * self.width
        return np.clip(middles, self.low, self.high), self.counts[places].astype(np.float64)


def _widened(histogram: Histogram, exponent: int) -> Array:
    """A histogram's counts in bins that reach to a greater (or the same) power of two."""
    if exponent == histogram.exponent:
        return histogram.counts
    merged = min(2 ** (exponent - histogram.exponent), BINS)
    counts = np.zeros_like(histogram.counts)
    kept = BINS // merged
    below, above = histogram.counts[:BINS], histogram.counts[BINS:]
    counts[BINS - kept : BINS] = below.reshape(kept, merged).sum(axis=1)
    counts[BINS : BINS + kept] = above.reshape(kept, merged).sum(axis=1)
    return counts
