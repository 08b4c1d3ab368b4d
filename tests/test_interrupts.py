"""Signals that come while TensorRT works."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from parnet_deploy.interrupts import held_back


def swallow() -> None:
    """Get an interrupt where what is raised is dropped, as in TensorRT's logger."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))  # Python code, in which a handler gets its turn
    except KeyboardInterrupt:
        pass


def test_an_interrupt_that_would_be_swallowed_arrives() -> None:
    swallow()  # it is: nothing arrives here
    done = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with held_back():
            swallow()
            done.append("the library's work was not cut in the middle")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_nothing_happens_and_errors_pass() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="its own"), held_back():
        raise ValueError("its own")
    assert signal.getsignal(signal.SIGTERM) is before


def test_threads_other_than_the_main_one_have_no_handlers() -> None:
    done = []

    def work() -> None:
        with held_back():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_what_came_can_be_looked_at_in_the_block() -> None:
    seen: list[int] = []

    def work() -> None:
        with held_back() as signals:
            assert signals == []
            signal.raise_signal(signal.SIGINT)
            seen.extend(signals)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [signal.SIGINT]


def test_whoever_asks_a_second_time_wants_it_at_once() -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("the first is held back")
            signal.raise_signal(signal.SIGINT)
            done.append("the second is not")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the first is held back"]
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back() as signals:
            signal.raise_signal(signal.SIGINT)
        assert signals == []
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
