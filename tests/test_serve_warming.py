"""An engine is opened, proven to work and warmed up before anybody is let in."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from served import (
    PATIENCE,
    SETTINGS,
    SIGNATURE,
    GatedRunner,
    counting_runner,
    echo,
    echo_runner,
    serving,
    with_batch,
)

from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime.base import FunctionRunner
from parnet_deploy.serve.engine.model import ServedModel, State
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.spec import Array


@pytest.mark.parametrize(
    ("changes", "batch", "expected"),
    [
        ({"warm_up": 3}, (1, 8), [1, 1, 1]),
        ({"warm_up": 2, "max_batch": 4}, (1, 8), [1, 1, 4, 4]),
        ({"warm_up": 1, "max_batch": 8}, (2, 8), [2, 8]),
        ({"warm_up": 2, "max_batch": 4}, (8, 8), [8, 8]),
        ({"warm_up": 2, "contexts": 3}, (1, 8), [1] * 6),
        ({"warm_up": 0}, (1, 8), []),
    ],
)
def test_it_is_warmed_up_before_it_is_ready(
    changes: dict[str, int], batch: tuple[int, int], expected: list[int]
) -> None:
    sizes: list[int] = []
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    with serving(lambda: counting_runner(sizes), settings, with_batch(*batch)) as model:
        assert sizes == expected
        assert model.ready


def test_contexts_are_warmed_up_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)  # breaks where one runs after the other

    def meet(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        together.wait()
        return echo(feeds)

    with serving(
        lambda: counting_runner([], meet), replace(SETTINGS, warm_up=2, contexts=3)
    ) as model:
        assert model.ready


def broken(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    raise RunnerError("out of memory")


def strange(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    raise MemoryError


def not_a_number(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"logits": np.full_like(echo(feeds)["logits"], np.nan)}


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize(
    ("function", "words"),
    [(broken, "out of memory"), (strange, "MemoryError"), (not_a_number, "not finite")],
)
def test_an_engine_that_fails_its_first_run_is_not_served(
    function: object, words: str, contexts: int
) -> None:
    closed: list[str] = []
    runner = counting_runner([], function)
    runner.close = lambda: closed.append("closed")  # type: ignore[method-assign]
    settings = replace(SETTINGS, warm_up=1, contexts=contexts)
    model = ServedModel(SIGNATURE, lambda: runner, settings, Recorder(SIGNATURE))
    with pytest.raises(EngineError, match=words):
        model.start()
    assert closed == ["closed"]
    assert (model.state, model.ready) == (State.STOPPED, False)
    model.close()
    assert closed == ["closed"]


def test_an_engine_that_is_not_what_its_bundle_says_is_not_served() -> None:
    other = with_batch(1, 8)
    other = replace(other, outputs=(replace(other.scores, shape=("N", 5)),))
    settings = replace(SETTINGS, warm_up=1)
    model = ServedModel(other, echo_runner, settings, Recorder(other))
    with pytest.raises(EngineError, match="is expected"):
        model.start()


def test_an_engine_that_cannot_be_opened_says_why() -> None:
    def opener() -> FunctionRunner:
        raise EngineError("it is for another GPU")

    model = ServedModel(SIGNATURE, opener, SETTINGS, Recorder(SIGNATURE))
    with pytest.raises(EngineError, match="another GPU"):
        model.start()
    assert model.state is State.STOPPED
    model.close()


def test_an_engine_that_is_closed_while_it_is_opened_is_freed() -> None:
    runner = GatedRunner()

    def opener() -> GatedRunner:
        model.close()
        return runner

    model = ServedModel(SIGNATURE, opener, SETTINGS, Recorder(SIGNATURE))
    with pytest.raises(EngineError, match="closed while"):
        model.start()
    assert runner.log == ["closed"]
