"""Latencies in few numbers, and ratios round by round."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bench.result import Settings
from parnet_deploy.bench.statistics import compare, describe
from parnet_deploy.errors import UsageError

milliseconds = st.floats(0.01, 1e4)
rounds = st.lists(st.lists(milliseconds, min_size=1, max_size=8), min_size=1, max_size=6)


@given(rounds=rounds)
def test_percentiles_are_in_order_and_within_what_was_measured(rounds: list[list[float]]) -> None:
    found = describe(rounds)
    every = [value for latencies in rounds for value in latencies]
    assert found.count == len(every)
    slack = 1e-9 * max(every)
    order = [min(every), found.minimum, found.p50, found.p90, found.p95, found.p99, max(every)]
    assert all(low <= high + slack for low, high in itertools.pairwise(order))
    assert found.mean == pytest.approx(np.mean(every))
    assert found.variation == pytest.approx(np.std(every) / np.mean(every))


def test_known_figures() -> None:
    found = describe([[1.0, 2.0, 3.0], [4.0, 5.0]])
    assert (found.p50, found.p90, found.mean, found.minimum) == (3.0, 4.6, 3.0, 1.0)
    assert found.drift == pytest.approx(0.5)  # the second round's 4.5 against 3
    assert found.variation == pytest.approx(np.sqrt(2) / 3)


def test_steady_latencies_neither_vary_nor_drift() -> None:
    found = describe([[2.0] * 5] * 3)
    assert (found.variation, found.drift) == (0.0, 0.0)


@given(rounds=rounds, factor=st.floats(0.1, 10))
def test_a_disturbance_of_a_whole_round_falls_out_of_the_ratio(
    rounds: list[list[float]], factor: float
) -> None:
    """Both are slowed in the same rounds, each by another factor; their ratio stays."""
    slowed = [[value * (1 + n) for value in latencies] for n, latencies in enumerate(rounds)]
    other = [[value * factor for value in latencies] for latencies in slowed]
    found = compare(other, slowed)
    assert found.median == pytest.approx(factor)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)


@given(rounds=rounds, seed=st.integers(0, 99))
def test_the_other_way_round_gives_the_inverse(rounds: list[list[float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    other = [
        [value * factor for value in own]
        for own, factor in zip(rounds, rng.uniform(0.2, 5, len(rounds)), strict=True)
    ]
    one, back = compare(rounds, other), compare(other, rounds)
    assert one.median == pytest.approx(1 / back.median)
    assert (one.low, one.high) == (pytest.approx(1 / back.high), pytest.approx(1 / back.low))


@given(rounds=rounds)
def test_a_contestant_against_itself_is_one(rounds: list[list[float]]) -> None:
    assert compare(rounds, rounds).median == 1.0


@pytest.mark.parametrize("bad", [[], [[1.0], []]])
def test_no_latencies_are_no_figures(bad: list[list[float]]) -> None:
    with pytest.raises(UsageError, match="at least one run"):
        describe(bad)


def test_rounds_that_do_not_match_are_not_compared() -> None:
    with pytest.raises(UsageError, match="there are 1 and 2"):
        compare([[1.0]], [[1.0], [1.0]])
    with pytest.raises(UsageError, match="there are 0 and 0"):
        compare([], [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", 0),
        ("rounds", 0),
        ("processes", -1),
        ("iterations", 0),
        ("seconds", -1.0),
        ("seconds", float("inf")),
    ],
)
def test_settings_that_measure_nothing_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{field}"):
        Settings(**{field: value})  # type: ignore[arg-type]
