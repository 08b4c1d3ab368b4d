"""compare: it fails on everything that does not match, and tells of all of it at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parnet_deploy.verify import compare

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)
FINITE = st.floats(-1e6, 1e6, width=32)
ARRAYS = hnp.arrays(np.float32, SHAPES, elements=FINITE)
NAMES = st.text("abcdef", min_size=1, max_size=4)
OUTPUTS = st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=4)


@given(OUTPUTS)
def test_equal_outputs_pass_with_no_tolerance(outputs: dict[str, np.ndarray]) -> None:
    copies = {name: value.copy() for name, value in outputs.items()}
    comparison = compare(outputs, copies, 0.0)
    assert comparison.passed
    assert comparison.max_abs == comparison.max_rel == 0.0
    assert comparison.top1 == 1.0
    assert comparison.cosine == pytest.approx(1.0, abs=1e-12)
    assert comparison.problems == ()


@given(OUTPUTS, st.randoms())
def test_the_order_of_outputs_does_not_matter(outputs: dict[str, np.ndarray], random) -> None:
    names = list(outputs)
    random.shuffle(names)
    other = {name: outputs[name] * np.float32(1.5) for name in names}
    assert compare(outputs, other, 0.1) == compare(dict(reversed(outputs.items())), other, 0.1)


@given(OUTPUTS, st.data())
def test_a_missing_output_fails(outputs: dict[str, np.ndarray], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(outputs)))
    rest = {name: value for name, value in outputs.items() if name != gone}
    comparison = compare(outputs, rest, 1e9)
    assert not comparison.passed
    assert comparison.problems == (f"'{gone}' is missing",)
    assert comparison.max_rel is None


@given(OUTPUTS, ARRAYS)
def test_an_extra_output_fails(outputs: dict[str, np.ndarray], extra: np.ndarray) -> None:
    comparison = compare(outputs, {**outputs, "more": extra}, 1e9)
    assert comparison.problems == ("'more' was not expected",)
    assert not comparison.passed


@given(ARRAYS, st.data(), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_value_that_is_not_finite_fails_wherever_it_is(
    array: np.ndarray, data: st.DataObject, value: float
) -> None:
    place = data.draw(st.integers(0, array.size - 1))
    broken = array.copy()
    broken.flat[place] = value
    assert not compare({"y": array}, {"y": broken}, 1e9).passed
    assert not compare({"y": broken}, {"y": array}, 1e9).passed
    assert not compare({"y": broken}, {"y": broken}, 1e9).passed
    assert f"1 of {array.size}" in compare({"y": array}, {"y": broken}, 1e9).problems[0]


@given(ARRAYS, ARRAYS)
def test_another_shape_fails_even_where_it_would_broadcast(a: np.ndarray, b: np.ndarray) -> None:
    comparison = compare({"y": a}, {"y": b}, 1e12)
    if a.shape == b.shape:
        return
    assert not comparison.passed
    assert str(list(b.shape)) in comparison.problems[0]


def test_a_row_in_place_of_a_batch_fails() -> None:
    ones = np.ones((4, 7))
    assert not compare({"y": ones}, {"y": ones[:1]}, 1e9).passed
    assert not compare({"y": ones}, {"y": ones[0]}, 1e9).passed
    assert not compare({"y": ones}, {"y": ones[None]}, 1e9).passed


@given(ARRAYS, st.floats(1e-6, 1e6), st.floats(1e-4, 1e-1))
def test_the_relative_error_does_not_depend_on_the_scale(
    array: np.ndarray, scale: float, factor: float
) -> None:
    if np.abs(array).max() < 1e-3:
        return
    wide = array.astype(np.float64)
    plain = compare({"y": wide}, {"y": wide * (1 + factor)}, 1.0)
    scaled = compare({"y": wide * scale}, {"y": wide * scale * (1 + factor)}, 1.0)
    assert plain.max_rel == pytest.approx(factor, rel=1e-6)
    assert scaled.max_rel == pytest.approx(plain.max_rel, rel=1e-6)


@given(ARRAYS, st.floats(1e-6, 1e-2), st.data())
def test_the_verdict_turns_at_the_tolerance(
    array: np.ndarray, tolerance: float, data: st.DataObject
) -> None:
    wide = array.astype(np.float64)
    wide.flat[0] = 1.0
    wide = np.clip(wide, -1.0, 1.0)
    place = data.draw(st.integers(0, wide.size - 1))
    for factor, passes in ((0.99, True), (1.01, False)):
        other = wide.copy()
        other.flat[place] += factor * tolerance
        comparison = compare({"y": wide}, {"y": other}, tolerance)
        assert comparison.passed is passes
        worst = comparison.outputs[0].worst
        assert worst == tuple(int(i) for i in np.unravel_index(place, wide.shape))


def test_one_bad_element_is_not_averaged_away() -> None:
    expected = np.ones((1, 1_000_000))
    actual = expected.copy()
    actual[0, 77] = 1.01
    comparison = compare({"y": expected}, {"y": actual}, 1e-3)
    assert not comparison.passed
    assert comparison.cosine == pytest.approx(1.0, abs=1e-9)
    assert comparison.outputs[0].worst == (0, 77)


def test_all_outputs_are_told_of_at_once() -> None:
    expected = {name: np.ones((2, 3)) for name in ("far", "gone", "nan", "ok", "shape")}
    actual = {
        "far": np.full((2, 3), 2.0),
        "nan": np.full((2, 3), np.nan),
        "ok": np.ones((2, 3)),
        "shape": np.ones((3, 2)),
        "more": np.ones(1),
    }
    comparison = compare(expected, actual, 1e-3)
    assert [output.name for output in comparison.outputs if not output.passed] == [
        "far",
        "gone",
        "more",
        "nan",
        "shape",
    ]
    assert len(comparison.problems) == 5
    assert "'far' differs by 1.0e+00" in comparison.problems[0]
    assert "1.0e-03 is allowed" in comparison.problems[0]


def test_nothing_to_compare_does_not_pass() -> None:
    assert not compare({}, {}, 1.0).passed
    assert compare({}, {}, 1.0).problems == ("there is no output to compare",)
    empty = np.empty((0, 7))
    assert not compare({"y": empty}, {"y": empty}, 1.0).passed


def test_a_tolerance_that_is_no_number_passes_nothing() -> None:
    assert not compare({"y": np.ones(3)}, {"y": np.ones(3)}, float("nan")).passed


def test_an_error_against_zeros_is_no_small_error() -> None:
    zeros = np.zeros((1, 4))
    assert compare({"y": zeros}, {"y": zeros}, 0.0).passed
    comparison = compare({"y": zeros}, {"y": zeros + 1e-30}, 1e9)
    assert not comparison.passed
    assert comparison.cosine == 0.0


def test_top_1_and_cosine_are_by_row() -> None:
    expected = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    actual = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    comparison = compare({"y": expected}, {"y": actual}, 10.0)
    assert comparison.top1 == 0.5
    assert comparison.cosine == pytest.approx(-1.0)


def test_huge_values_are_compared_and_not_overflown() -> None:
    huge = np.full((1, 3), 1e300)
    assert compare({"y": huge}, {"y": huge}, 0.0).cosine == pytest.approx(1.0)
    limit = np.array([[np.finfo(np.float64).max]])
    assert not compare({"y": limit}, {"y": -limit}, 1e6).passed


def test_float32_is_compared_with_float64_without_rounding_either() -> None:
    exact = np.array([[1.0 + 2.0**-30]])
    comparison = compare({"y": exact}, {"y": exact.astype(np.float32)}, 1e-6)
    assert comparison.max_abs == 2.0**-30
    assert comparison.passed
