"""What networks give, as probabilities and as the likeliest classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.outputs import (
    LEAST_RESPONSE,
    Guess,
    likeliest,
    probabilities,
    response,
    unresponsive,
)


def test_probabilities_of_huge_logits() -> None:
    rows = np.array([[1000.0, 999.0, -1000.0]], np.float32)
    got = probabilities(rows, softmax=False)
    assert got[0] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0.0])


def test_probabilities_that_are_probabilities_already() -> None:
    rows = np.array([[0.25, 0.75]], np.float32)
    assert probabilities(rows, softmax=True).tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("softmax", [False, True])
def test_probabilities_refuse_what_is_no_number(value: float, softmax: bool) -> None:
    with pytest.raises(RunnerError, match="not finite"):
        probabilities(np.array([[0.0, value]], np.float32), softmax=softmax)


def test_likeliest_takes_the_first_among_equals() -> None:
    row = np.array([0.2, 0.4, 0.4])
    assert likeliest(row, ("a", "b", "c"), 2) == (
        Guess(label="b", index=1, probability=0.4),
        Guess(label="c", index=2, probability=0.4),
    )


ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 8), st.integers(1, 5)),
    elements=st.floats(-50, 50, width=16),
).filter(lambda rows: np.ptp(rows, axis=0).max() > 1)


@given(ROWS, st.floats(-2, 2), st.floats(-1e3, 1e3))
def test_a_response_is_how_much_answers_differ_from_image_to_image(
    rows: np.ndarray, part: float, shift: float
) -> None:
    found = response(rows, part * rows.astype(np.float64) + shift)
    assert found == pytest.approx(abs(part), abs=1e-6)
    right = unresponsive(rows, part * rows, 0.9) is None
    spread = np.abs(rows - rows.mean(axis=0)).max() / np.abs(rows).max()
    follows = abs(part) >= LEAST_RESPONSE or spread < 0.9 / 8
    at_an_edge = abs(part) == pytest.approx(LEAST_RESPONSE) or spread == pytest.approx(0.9 / 8)
    assert at_an_edge or right == follows


@given(ROWS)
def test_answers_that_are_always_the_same_follow_nothing(rows: np.ndarray) -> None:
    for answer in (0 * rows, 0 * rows + rows.mean(axis=0), 0 * rows + rows[0]):
        assert abs(response(rows, answer) or 0) < 1e-5
    assert unresponsive(rows, 0 * rows, 1e-4) is None, "which the error tells"


def test_what_a_response_cannot_be_told_of() -> None:
    one = np.array([[1.0, 2.0]], np.float32)
    assert response(one, one) is None
    assert response(one.repeat(3, axis=0), np.zeros((3, 2), np.float32)) is None
    assert unresponsive(one.repeat(3, axis=0), np.zeros((3, 2), np.float32), 0.5) is None
    assert "shape" in (unresponsive(one, one.repeat(2, axis=0), 0.5) or "")
