"""From what was seen of a tensor to how it is quantised.

minmax      all that was seen
percentile  but for a share of the values: of the greatest magnitudes, or at both ends
entropy     the range whose quantised distribution tells least apart from the true one: the search
            of S. Migacz, "8-bit inference with TensorRT" (GTC 2017, session 7310)
mse         the range with the least expected squared error

int8 and float8_e4m3fn are symmetric; uint8 has a zero point, and zero is one of its numbers
exactly, since padding is made of it. No method gives a range beyond what was seen.

The search for the entropy is ours. That of ``onnxruntime.quantization`` (1.31) keeps the quantised
distribution in whole numbers, so that levels with less than one value a bin count as empty, which
are those of the tails; fills bins that are empty in the true one; and with its own default of 128
bins there is one candidate only, the whole range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from parnet_deploy.errors import UsageError
from parnet_deploy.quantise.histogram import BINS, Histogram
from parnet_deploy.spec import Array
from parnet_deploy.spec.quantisation import LIMITS, CalibrationMethod, QuantisedType, Quantiser
from parnet_deploy.spec.ranges import Range, spanning

PERCENTILE = 99.99
"""Where none is asked for."""

LEAST = 1e-30
"""Ranges below it are nothing: a float32 scale would lose its precision."""

_SIDE = 128
"""Levels to either side of zero, in Migacz's search for int8."""

_ENTROPY_BINS = 2048
_ENTROPY_STEP = 4
"""Bins of magnitudes, as Migacz has them, and the step from one limit that is tried to the next."""

_RARE = 1e-4
"""Count of a bin where the quantised distribution has nothing and the true one has, as in MXNet's
search: divergences stay finite, and a lone value far away does not decide."""

_COARSE, _FINE, _TURNS = 64, 17, 4
"""Sizes of a range that are tried, and turns from one of its ends to the other."""

_SPAN = 32.0
"""Ranges are searched down to this part of the whole one, see `histogram.BINS`."""


def quantiser(
    histogram: Histogram,
    dtype: QuantisedType,
    method: CalibrationMethod,
    percentile: float | None = None,
) -> Quantiser:
    """How a tensor is quantised.

    Args:
        histogram: what was seen of it.
        dtype: what it is quantised to.
        method: how its range is found.
        percentile: for ``percentile``: share of values, in percent, that lie within the range;
            `PERCENTILE` where None.

    Raises:
        UsageError: the method finds no ranges, or its percentile is none; or the values are all
            (nearly) zero.
    """
    check_method(method, percentile)
    if histogram.greatest < LEAST:
        raise UsageError(
            f"no range can be found where no value is greater than {histogram.greatest:.3g}"
        )
    if method == "mse":
        return _least_error(histogram, dtype)
    if method == "percentile":
        found = _percentile(histogram, dtype, PERCENTILE if percentile is None else percentile)
    elif method == "entropy":
        found = _entropy(histogram, dtype)
    else:
        found = _whole(histogram)
    return spanning(found, dtype)


def quantisers(
    histograms: Mapping[str, Histogram],
    dtype: QuantisedType,
    method: CalibrationMethod,
    percentile: float | None = None,
) -> dict[str, Quantiser]:
    """`quantiser` of several tensors, by their names.

    Raises:
        UsageError: as `quantiser`; the message names the tensor.
    """
    check_method(method, percentile)
    found = {}
    for name, histogram in histograms.items():
        try:
            found[name] = quantiser(histogram, dtype, method, percentile)
        except UsageError as exc:
            raise UsageError(f"the layer '{name}' cannot be quantised: {exc}") from exc
    return found


def check_method(method: str, percentile: float | None) -> None:
    """Refuse what finds no range, before images are run.

    Raises:
        UsageError: there is no such method, or the percentile is none or belongs to no method.
    """
    if method not in ("minmax", "entropy", "percentile", "mse"):
        raise UsageError(
            f"ranges are found by minmax, entropy, percentile or mse, not by '{method}'"
        )
    if percentile is None:
        return
    if method != "percentile":
        raise UsageError(
            f"a percentile belongs to the method 'percentile', not to '{method}': give "
            "--calibration-method percentile as well, or leave --percentile out"
        )
    if not 50.0 < percentile <= 100.0:  # so written, NaN is refused, too
        raise UsageError(f"a percentile is more than 50 and at most 100, not {percentile:g}")


def rounded(values: Array, how: Quantiser) -> Array:
    """Values, quantised and made real again.

    Args:
        values: of any shape.
        how: the quantiser.

    Returns:
        The same shape, float64. Halves go to the even number, as ONNX's QuantizeLinear has it, and
        what is out of range to its end.
    """
    scaled = np.asarray(values, np.float64) / how.scale
    real: Array = _nearest(scaled, how) * how.scale
    return real


def _nearest(scaled: Array, how: Quantiser) -> Array:
    """Of values by their scale, the nearest that there are, without the zero point."""
    if how.dtype == "float8_e4m3fn":
        return round_e4m3(scaled)
    lowest, highest = LIMITS[how.dtype]
    nearest = np.rint(scaled)
    np.clip(nearest, lowest - how.zero_point, highest - how.zero_point, out=nearest)
    return nearest


def round_e4m3(values: Array) -> Array:
    """The nearest numbers of float8_e4m3fn, halves to even, saturating at 448; float64.

    Three bits behind the point, exponents from -6: P. Micikevicius et al., "FP8 formats for deep
    learning", https://arxiv.org/abs/2209.05433.
    """
    x = np.asarray(values, np.float64)
    _, exponents = np.frexp(x)  # of m * 2**e with m in [1/2, 1)
    steps = np.ldexp(1.0, np.maximum(exponents - 1, -6) - 3)
    lowest, highest = LIMITS["float8_e4m3fn"]
    nearest: Array = np.clip(np.rint(x / steps) * steps, lowest, highest)
    return nearest


def squared_error(histogram: Histogram, how: Quantiser) -> float:
    """Mean squared error of a tensor's values when they are quantised, each in its bin's middle."""
    values, counts = histogram.filled()
    return _squared_error(values, counts, how)


def _squared_error(values: Array, counts: Array, how: Quantiser) -> float:
    scaled = values / how.scale
    errors = _nearest(scaled, how)
    errors -= scaled
    errors *= errors
    errors *= counts  # not a product of vectors: BLAS would wake threads for each
    return float(errors.sum() / counts.sum()) * how.scale**2


def _whole(histogram: Histogram) -> Range:
    return Range(low=min(histogram.low, 0.0), high=max(histogram.high, 0.0))


def _within(limit: float, histogram: Histogram) -> Range:
    """A range as far to either side, but not beyond what was seen."""
    return Range(
        low=max(-limit, min(histogram.low, 0.0)), high=min(limit, max(histogram.high, 0.0))
    )


def _percentile(histogram: Histogram, dtype: QuantisedType, percent: float) -> Range:
    """The ends of the bins in which the share is reached.

    For uint8, half of what is left out is left out at either end.
    """
    if dtype != "uint8":
        return _within(_bin_end(histogram.magnitudes, percent) * histogram.width, histogram)
    each = 100.0 - (100.0 - percent) / 2
    above = _bin_end(histogram.counts, each) - BINS
    below = _bin_end(histogram.counts[::-1], each) - BINS
    whole = _whole(histogram)
    found = Range(
        low=min(max(-below * histogram.width, whole.low), 0.0),
        high=max(min(above * histogram.width, whole.high), 0.0),
    )
    # Where all but a few values are zero, they are what there is.
    return found if found.greatest > 0.0 else whole


def _bin_end(counts: Array, percent: float) -> int:
    """How many bins, from the first one, hold that share of all values."""
    reached = np.cumsum(counts)
    return int(np.searchsorted(reached, percent / 100.0 * reached[-1])) + 1


def _entropy(histogram: Histogram, dtype: QuantisedType) -> Range:
    """The limit whose quantised distribution has the least divergence from the true one.

    Both are of magnitudes. The true one has what is beyond the limit in its last bin; the
    quantised one does not, and spreads what is in a level over those of its bins that are not
    empty. The first bin counts as the second: zeros are quantised exactly, and there may be so
    many of them, behind a ReLU, that nothing else would count. Of uint8's levels, those count that
    lie on the longer side of zero.
    """
    counts = _to_entropy_bins(histogram)
    counts[0] = counts[1]
    if not counts.any():
        return _whole(histogram)
    levels = _levels(histogram, dtype)
    limits = np.append(np.arange(_SIDE, len(counts), _ENTROPY_STEP), len(counts))
    divergences = [_divergence(counts, int(limit), levels) for limit in limits]
    best = int(limits[int(np.argmin(divergences))])
    return _within(histogram.greatest * best / len(counts), histogram)


def _to_entropy_bins(histogram: Histogram) -> Array:
    """(`_ENTROPY_BINS`,) float64: counts of magnitudes up to the greatest that was seen."""
    magnitudes = histogram.magnitudes
    used = min(math.ceil(histogram.greatest / histogram.width), BINS)
    middles = (np.arange(used) + 0.5) * (histogram.width / histogram.greatest)
    places = np.minimum(middles * _ENTROPY_BINS, _ENTROPY_BINS - 1).astype(np.intp)
    counts = np.bincount(places, weights=magnitudes[:used], minlength=_ENTROPY_BINS)
    counts[-1] += magnitudes[used:].sum()  # the greatest one itself, where it is a power of two
    return counts


Levels = Callable[[int], Array]
"""For so many bins, the first bin of each level, ascending, beginning with 0."""


def _levels(histogram: Histogram, dtype: QuantisedType) -> Levels:
    if dtype == "float8_e4m3fn":
        return _float_levels
    if dtype == "int8":
        return partial(_even_levels, _SIDE)
    lowest, highest = LIMITS[dtype]
    whole = _whole(histogram)
    return partial(
        _even_levels, round((highest - lowest) * whole.greatest / (whole.high - whole.low))
    )


def _even_levels(number: int, limit: int) -> Array:
    number = min(number, limit)
    return np.arange(number) * limit // number


def _float_levels(limit: int) -> Array:
    """The first bin of each of float8's numbers up to 448, which the limit is scaled to."""
    greatest = LIMITS["float8_e4m3fn"][1]
    numbers = round_e4m3((np.arange(limit) + 0.5) * (greatest / limit))
    return np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1])


def _divergence(counts: Array, limit: int, levels: Levels) -> float:
    """Kullback-Leibler divergence of the quantised distribution from the true one."""
    inside = counts[:limit]
    filled = inside > 0
    true = inside.copy()
    true[-1] += counts[limit:].sum()
    starts = levels(limit)
    sizes = np.diff(np.append(starts, limit))
    sums = np.add.reduceat(inside, starts)
    filled_bins = np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1.0)
    quantised = np.repeat(sums / filled_bins, sizes)
    quantised[~filled] = 0.0
    occurs = true > 0
    quantised[occurs & ~(quantised > 0)] = _RARE
    p, q = true[occurs] / true.sum(), quantised[occurs] / quantised.sum()
    return float(p @ np.log(p / q))


def _least_error(histogram: Histogram, dtype: QuantisedType) -> Quantiser:
    """Search the ends of the range, from the whole one inwards; the best that was tried.

    One end at a time: over all sizes, then around the best of them; where there are two, again
    around the best, as often as that still pays.
    """
    values, counts = histogram.filled()

    def error(wanted: Range) -> float:
        return _squared_error(values, counts, spanning(wanted, dtype))

    best = whole = _whole(histogram)
    least = error(best)
    movable = [end for end in _ends(dtype) if end.size(whole) > 0]
    for turn in range(_TURNS if len(movable) > 1 else 1):
        before = least
        for end in movable:
            for candidates in (_coarsely, _finely) if turn == 0 else (_finely,):
                for size in candidates(end.size(best), end.size(whole)):
                    tried = end.moved(best, size)
                    if (found := error(tried)) < least:
                        best, least = tried, found
        if least > 0.999 * before:
            break
    return spanning(best, dtype)


@dataclass(frozen=True, slots=True)
class _End:
    """An end of a range, or both at once."""

    size: Callable[[Range], float]
    moved: Callable[[Range, float], Range]


def _ends(dtype: QuantisedType) -> tuple[_End, ...]:
    if dtype != "uint8":
        both = _End(lambda wanted: wanted.greatest, lambda _, size: Range(low=-size, high=size))
        return (both,)
    return (
        _End(lambda wanted: wanted.high, lambda old, size: Range(low=old.low, high=size)),
        _End(lambda wanted: -wanted.low, lambda old, size: Range(low=-size, high=old.high)),
    )


def _coarsely(_: float, whole: float) -> Iterator[float]:
    """Sizes from the whole range down to a thirty-second of it, by equal ratios."""
    yield from whole * _SPAN ** -(np.arange(1, _COARSE + 1) / _COARSE)


def _finely(best: float, whole: float) -> Iterator[float]:
    """Sizes around the best one, as far as its neighbours among the coarse ones."""
    ratio = _SPAN ** (1 / _COARSE)
    yield from np.minimum(best * ratio ** np.linspace(-1, 1, _FINE), whole)
