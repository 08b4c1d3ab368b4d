"""Histograms: no value is lost or moved, however they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from parnet_deploy.quantise.histogram import BINS, Histogram

SIZES = st.floats(2.0**-50, 2.0**60, width=32)
VALUES = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.just(0.0) | SIZES | SIZES.map(lambda size: -size)
)


def same(first: Histogram, second: Histogram) -> bool:
    return (
        first.exponent == second.exponent
        and (first.low, first.high) == (second.low, second.high)
        and np.array_equal(first.counts, second.counts)
    )


@given(VALUES)
def test_every_value_lies_in_its_bin(values: np.ndarray) -> None:
    found = Histogram.of(values)
    assert found.total == len(values)
    assert (found.low, found.high) == (values.min(), values.max())
    places = np.floor(values.astype(np.float64) / found.width).astype(int) + BINS
    np.testing.assert_array_equal(found.counts, np.bincount(places, minlength=2 * BINS))


@given(VALUES, VALUES)
def test_parts_added_are_the_whole_in_either_order(first: np.ndarray, second: np.ndarray) -> None:
    whole = Histogram.of(np.concatenate([first, second]))
    assert same(Histogram.of(first) + Histogram.of(second), whole)
    assert same(Histogram.of(second) + Histogram.of(first), whole)


@given(VALUES)
def test_the_range_fills_at_least_half_of_the_bins(values: np.ndarray) -> None:
    found = Histogram.of(values)
    limit = 2.0**found.exponent
    assert found.greatest < limit
    assert found.greatest >= limit / 2 or not values.any()


@given(VALUES)
def test_magnitudes_are_all_values_without_their_sign(values: np.ndarray) -> None:
    folded = Histogram.of(values).magnitudes
    assert folded.sum() == len(values)
    nonzero = values[np.abs(values) > 0]
    if len(nonzero):  # but for values on an edge, which a negative one has below it
        last = int(np.flatnonzero(folded).max())
        assert last * Histogram.of(values).width <= np.abs(nonzero).max()


@given(VALUES)
def test_what_is_filled_lies_within_what_was_seen(values: np.ndarray) -> None:
    found = Histogram.of(values)
    middles, counts = found.filled()
    assert counts.sum() == len(values)
    assert (np.diff(middles) >= 0).all()
    assert found.low <= middles.min() <= middles.max() <= found.high


def test_a_far_greater_value_leaves_the_others_at_zero() -> None:
    found = Histogram.of(np.array([-1e-3, 0.0, 1e-3], np.float32))
    found += Histogram.of(np.array([1e30], np.float32))
    assert found.counts[BINS - 1] == 1
    assert found.counts[BINS] == 2
    assert found.total == 4


@pytest.mark.parametrize("values", [[1e-45, -1e-45], [3e38, -1e-45]])
def test_the_smallest_and_greatest_of_float32_are_counted(values: list[float]) -> None:
    found = Histogram.of(np.array(values, np.float32))
    assert found.total == 2
    assert found.high == np.float32(values[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Histogram.of(np.array([1.0, bad], np.float32))
