"""Lanes: who runs when, who waits, who is told that it is over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.cuda.lanes import Lanes

PATIENCE = 20.0  # seconds; what takes longer hangs


def test_each_item_is_lent_to_one_thread_at_a_time_and_all_are_used() -> None:
    lanes = Lanes("abc")
    all_three = threading.Barrier(3)
    lent: list[str] = []
    lock = threading.Lock()

    def use(first: bool) -> None:
        with lanes.lent() as item:
            with lock:
                assert item not in lent
                lent.append(item)
            if first:
                all_three.wait(PATIENCE)  # it breaks where fewer are lent at once
            with lock:
                lent.remove(item)

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(use, [True] * 3, timeout=PATIENCE))
        list(callers.map(use, [False] * 500, timeout=PATIENCE))


def test_an_error_ends_the_lending_and_tells_those_who_wait() -> None:
    lanes = Lanes("a")
    inside, fail = threading.Event(), threading.Event()

    def failing() -> None:
        with lanes.lent():
            inside.set()
            assert fail.wait(PATIENCE)
            raise ValueError("no")

    def waiting() -> None:
        with lanes.lent():
            pass

    with ThreadPoolExecutor(4) as callers:
        first = callers.submit(failing)
        assert inside.wait(PATIENCE)
        others = [callers.submit(waiting) for _ in range(3)]
        fail.set()
        assert isinstance(first.exception(PATIENCE), ValueError)
        for other in others:
            assert str(other.exception(PATIENCE)) == "it failed before; open the engine again"


def test_taking_back_waits_for_what_is_lent_and_gives_it_once() -> None:
    lanes = Lanes("ab")
    inside, leave = threading.Event(), threading.Event()

    def use() -> None:
        with lanes.lent():
            inside.set()
            assert leave.wait(PATIENCE)

    with ThreadPoolExecutor(2) as callers:
        using = callers.submit(use)
        assert inside.wait(PATIENCE)
        taking = callers.submit(lanes.take_back, "it is closed")
        with pytest.raises(RunnerError, match="it is closed; open the engine again"):
            refused_once_closed(lanes)
        assert not taking.done()
        leave.set()
        using.result(PATIENCE)
        assert sorted(taking.result(PATIENCE)) == ["a", "b"]
    assert lanes.take_back("it is closed") == ()


def refused_once_closed(lanes: Lanes[str]) -> None:
    """Ask until it is refused: the other thread may not have come that far."""
    for _ in range(1_000_000):
        with lanes.lent():
            pass
