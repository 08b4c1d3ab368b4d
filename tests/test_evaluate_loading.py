"""Work in threads: order, bounds, failures, and an end that waits for nobody."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.evaluate.loading import ahead


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 7))
def test_results_come_in_the_items_order(items: int, threads: int, window: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.0005 * (item % 3))  # later ones are done earlier
        return item * item

    got = list(ahead(work, range(items), threads=threads, window=window))
    assert got == [item * item for item in range(items)]


def test_no_more_than_the_window_is_begun_ahead() -> None:
    begun: list[int] = []
    taken = 0
    with closing(ahead(begun.append, range(40), threads=2, window=5)) as results:
        for _ in results:
            taken += 1
            time.sleep(0.002)
            assert len(begun) <= taken + 5
    assert taken == len(begun) == 40


def test_several_are_worked_on_at_once() -> None:
    """Each waits for the other: one thread alone would never end."""
    both = threading.Barrier(2, timeout=10)
    assert len(list(ahead(lambda _: both.wait(), range(4), threads=2, window=4))) == 4


def test_a_failure_comes_in_its_place() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the third")
        return item

    results = ahead(work, range(6), threads=2, window=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert list(results) == []


def test_leaving_early_drops_what_was_not_begun_and_waits_for_nobody() -> None:
    hold, begun = threading.Event(), []

    def work(item: int) -> int:
        begun.append(item)
        if item:
            hold.wait(10)
        return item

    results = ahead(work, range(100), threads=1, window=50)
    assert next(results) == 0
    before = time.monotonic()
    results.close()
    assert time.monotonic() - before < 5, "the second item is still being worked on"
    hold.set()
    time.sleep(0.05)
    assert len(begun) <= 3
