"""From histograms to quantisers, by every method and for every type."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from parnet_deploy.errors import UsageError
from parnet_deploy.quantise.histogram import BINS, Histogram
from parnet_deploy.quantise.ranges import (
    quantiser,
    quantisers,
    round_e4m3,
    rounded,
    squared_error,
)
from parnet_deploy.spec.quantisation import LIMITS, CalibrationMethod, QuantisedType, Quantiser
from parnet_deploy.spec.ranges import Range, reach, spanning

TYPES: tuple[QuantisedType, ...] = get_args(QuantisedType)
METHODS: tuple[CalibrationMethod, ...] = ("minmax", "entropy", "percentile", "mse")
VALUES = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)
).filter(lambda values: np.abs(values).max() > 1e-20)


def silu(seed: int = 0) -> np.ndarray:
    """What a SiLU gives: hardly below zero, with a tail above."""
    x = 2 * np.random.default_rng(seed).standard_normal(100_000)
    return (x / (1 + np.exp(-x))).astype(np.float32)


def laplace(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=100_000).astype(np.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("method", METHODS)
@given(values=VALUES)
def test_no_range_goes_beyond_what_was_seen_and_zero_is_exact(
    method: CalibrationMethod, dtype: QuantisedType, values: np.ndarray
) -> None:
    histogram = Histogram.of(values)
    how = quantiser(histogram, dtype, method)
    found = reach(how)
    little = how.scale / 2 * (1 + 1e-5)  # by which a zero point may shift what is reached
    least, greatest = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if dtype == "uint8":
        assert found.low >= least - little
        assert found.high <= greatest + little
    else:
        assert found.greatest <= histogram.greatest * (1 + 1e-6)
        assert how.zero_point == 0
    assert rounded(np.zeros(1), how) == 0.0
    assert np.float32(how.scale) == how.scale


@pytest.mark.parametrize("dtype", TYPES)
@given(values=VALUES)
def test_minmax_reaches_all_that_was_seen(dtype: QuantisedType, values: np.ndarray) -> None:
    how = quantiser(Histogram.of(values), dtype, "minmax")
    step = how.scale * (1 if dtype != "float8_e4m3fn" else 448 / 14)
    error = np.abs(rounded(values, how) - values)
    assert error.max() <= step / 2 * (1 + 1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@given(values=VALUES)
def test_least_squared_error_is_never_more_than_that_of_the_whole_range(
    dtype: QuantisedType, values: np.ndarray
) -> None:
    histogram = Histogram.of(values)
    errors = [squared_error(histogram, quantiser(histogram, dtype, m)) for m in ("mse", "minmax")]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("values", [silu(), laplace()], ids=["silu", "laplace"])
@pytest.mark.parametrize("dtype", TYPES)
def test_least_squared_error_is_less_than_that_of_the_other_methods(
    dtype: QuantisedType, values: np.ndarray
) -> None:
    histogram = Histogram.of(values)
    errors = {m: squared_error(histogram, quantiser(histogram, dtype, m)) for m in METHODS}
    assert errors["mse"] == min(errors.values()), errors


@pytest.mark.parametrize("values", [silu(), laplace()], ids=["silu", "laplace"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_the_error_that_a_histogram_tells_is_that_of_the_values(
    method: CalibrationMethod, dtype: QuantisedType, values: np.ndarray
) -> None:
    histogram = Histogram.of(values)
    how = quantiser(histogram, dtype, method)
    true = float(np.mean((rounded(values, how) - values) ** 2))
    assert squared_error(histogram, how) == pytest.approx(true, rel=0.01)


def test_the_search_finds_what_trying_every_range_finds() -> None:
    histogram = Histogram.of(laplace())
    limits = histogram.greatest * np.linspace(0.1, 1.0, 2000)
    tried = [
        squared_error(histogram, spanning(Range(low=-limit, high=limit), "int8"))
        for limit in limits
    ]
    found = squared_error(histogram, quantiser(histogram, "int8", "mse"))
    assert found <= min(tried) * 1.001


@pytest.mark.parametrize("dtype", TYPES)
@given(values=VALUES, percents=st.lists(st.floats(50.5, 100.0), min_size=2, max_size=2))
def test_a_greater_percentile_never_gives_a_smaller_range(
    dtype: QuantisedType, values: np.ndarray, percents: list[float]
) -> None:
    histogram = Histogram.of(values)
    less, more = (quantiser(histogram, dtype, "percentile", p) for p in sorted(percents))
    assert less.scale <= more.scale
    assert quantiser(histogram, dtype, "percentile", 100.0) == quantiser(histogram, dtype, "minmax")


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9])
def test_a_percentile_is_the_share_within_the_range(percent: float) -> None:
    values = laplace()
    histogram = Histogram.of(values)
    share = percent / 100
    limit = quantiser(histogram, "int8", "percentile", percent).scale * 127
    assert np.mean(np.abs(values) <= limit) == pytest.approx(share, abs=1e-4)
    found = reach(quantiser(histogram, "uint8", "percentile", percent))
    step = (found.high - found.low) / 255
    for tail in (values < found.low - step, values > found.high + step):
        assert tail.mean() <= (1 - share) / 2
    for tail in (values < found.low + step, values > found.high - step):
        assert tail.mean() >= (1 - share) / 2


def test_a_percentile_of_hardly_anything_but_zeros_is_still_a_range() -> None:
    values = np.zeros(10_000, np.float32)
    values[:3] = -2.0
    for dtype in TYPES:
        assert quantiser(Histogram.of(values), dtype, "percentile", 60.0).scale > 0


def test_a_tensor_without_negatives_has_its_zero_at_the_lowest_number() -> None:
    above = np.abs(laplace())
    for method in METHODS:
        assert quantiser(Histogram.of(above), "uint8", method).zero_point == 0
        assert quantiser(Histogram.of(-above), "uint8", method).zero_point == 255


def test_uint8_spends_nothing_on_what_a_silu_does_not_give() -> None:
    how = quantiser(Histogram.of(silu()), "uint8", "minmax")
    assert how.scale * 255 == pytest.approx(silu().max() - silu().min(), rel=1e-6)
    assert reach(how).low == pytest.approx(-0.278, abs=how.scale)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_entropy_leaves_out_a_lone_value_far_away(dtype: QuantisedType) -> None:
    values = np.append(laplace(), np.float32(200.0))
    how = quantiser(Histogram.of(values), dtype, "entropy")
    assert reach(how).greatest < 20.0


@pytest.mark.parametrize("dtype", TYPES)
def test_entropy_takes_the_whole_of_an_even_distribution(dtype: QuantisedType) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    how = quantiser(Histogram.of(values), dtype, "entropy")
    assert reach(how).greatest == pytest.approx(1.0, abs=0.02)


def _divergence(magnitudes: np.ndarray, limit: int, levels: int) -> float:
    """One step of the search as S. Migacz's slides have it, level by level."""
    bins = magnitudes.astype(float)
    bins[0] = bins[1]
    reference = bins[:limit].copy()
    reference[-1] += bins[limit:].sum()
    candidate = np.zeros(limit)
    for level in range(levels):
        start, stop = level * limit // levels, (level + 1) * limit // levels
        filled = [place for place in range(start, stop) if bins[place] > 0]
        for place in filled:
            candidate[place] = bins[start:stop].sum() / len(filled)
    candidate[(candidate == 0) & (reference > 0)] = 1e-4
    p, q = reference / reference.sum(), candidate / candidate.sum()
    occurs = p > 0
    return float((p[occurs] * np.log(p[occurs] / q[occurs])).sum())


def test_entropy_is_migacz_s_search() -> None:
    values = np.float32(0.1) * np.random.default_rng(0).standard_normal(20_000, np.float32)
    values[0] = 1.0 - 2**-14  # so that its 2048 bins are eight of ours each
    histogram = Histogram.of(values)
    magnitudes = histogram.magnitudes.reshape(2048, BINS // 2048).sum(axis=1)
    found = quantiser(histogram, "int8", "entropy").scale * 127
    best = round(found / histogram.greatest * 2048)
    assert best < 2048  # otherwise nothing was searched
    others = [_divergence(magnitudes, limit, 128) for limit in [*range(128, 2048, 128), 2048]]
    assert _divergence(magnitudes, best, 128) <= min(others)


@given(arrays.arrays(np.float64, 50, elements=st.floats(-600, 600)))
def test_float8_is_rounded_as_ml_dtypes_rounds_it(values: np.ndarray) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    expected = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(round_e4m3(values), expected)


def test_float8_has_small_numbers_and_an_end() -> None:
    given = [0.0, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9, 17.0, 19.0, 447.0, 1e9, -1e9]
    expected = [0.0, 2.0**-9, 0.0, 2.0**-8, 16.0, 20.0, 448.0, 448.0, -448.0]
    assert round_e4m3(np.array(given)).tolist() == expected


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_rounding_is_that_of_onnx_s_operators(dtype: QuantisedType) -> None:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    how = Quantiser(dtype=dtype, scale=0.25, zero_point=7 if dtype == "uint8" else 0)
    low, _ = LIMITS[dtype]
    zero = helper.make_tensor("zero", getattr(TensorProto, dtype.upper()), [], [how.zero_point])
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [how.scale])
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [scale, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    x = np.linspace((low - how.zero_point) * 0.25, 80, 1001).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(rounded(x, how), expected, rtol=1e-6)


def test_several_tensors_keep_their_names() -> None:
    found = quantisers({"a": Histogram.of(silu()), "b": Histogram.of(laplace())}, "int8", "minmax")
    assert list(found) == ["a", "b"]
    assert found["b"].scale == np.float32(np.abs(laplace()).max() / 127)


@pytest.mark.parametrize(
    ("method", "percentile", "said"),
    [
        ("average", None, "not by 'average'"),
        ("qat", None, "not by 'qat'"),
        ("minmax", 99.0, "belongs to the method 'percentile', not to 'minmax'"),
        ("percentile", 50.0, "more than 50 and at most 100, not 50"),
        ("percentile", 100.1, "not 100.1"),
        ("percentile", float("nan"), "not nan"),
    ],
)
def test_what_finds_no_range_is_refused(
    method: CalibrationMethod, percentile: float | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        quantiser(Histogram.of(laplace()), "int8", method, percentile)


@pytest.mark.parametrize("value", [0.0, 1e-38])
def test_nothing_but_zeros_has_no_range(value: float) -> None:
    with pytest.raises(UsageError, match="no range can be found"):
        quantiser(Histogram.of(np.full(4, value, np.float32)), "int8", "minmax")
