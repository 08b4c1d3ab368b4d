"""What networks give, as probabilities and as the likeliest classes."""

from __future__ import annotations

import numpy as np
import pytest

from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.outputs import Guess, likeliest, probabilities


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
