"""Requests put together and taken apart: every one gets its own rows, whatever batch was run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import (
    SETTINGS,
    GatedRunner,
    ask,
    asked,
    echo,
    echo_runner,
    echoed,
    images,
    run,
    serving,
    settle,
    with_batch,
)

from parnet_deploy.errors import RequestError, RunnerError, UsageError
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.serve.engine.batching import gather, rows_of, split
from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.spec import Array

BATCHING = replace(SETTINGS, max_batch=4, queue=16)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), low=st.integers(1, 16))
def test_what_is_gathered_can_be_split(sizes: list[int], low: int) -> None:
    first = np.cumsum([0, *sizes])
    parts = [
        images(*range(start, start + size)) for start, size in zip(first[:-1], sizes, strict=True)
    ]
    fed = gather(parts, max(0, low - sum(sizes)))
    assert rows_of(fed) == max(low, sum(sizes))
    answers = list(split(echo(fed), sizes))
    assert [rows_of(answer) for answer in answers] == sizes
    for part, answer in zip(parts, answers, strict=True):
        assert np.array_equal(answer["logits"], echo(part)["logits"])
    last = fed["images"][sum(sizes) - 1]
    assert all(np.array_equal(row, last) for row in fed["images"][sum(sizes) :])


def test_a_request_that_fits_is_not_copied() -> None:
    feeds = images(1, 2)
    assert gather([feeds], 0) is feeds


def test_several_inputs_keep_their_names() -> None:
    parts = [{"a": np.full((2, 1), n), "b": np.full((2, 3), -n)} for n in (1, 2)]
    fed = gather(parts, 1)
    assert fed["a"][:, 0].tolist() == [1, 1, 2, 2, 2]
    assert fed["b"][:, 2].tolist() == [-1, -1, -2, -2, -2]


@pytest.mark.parametrize(
    "arrays",
    [{}, {"a": np.zeros(()), "b": np.zeros(1)}, {"a": np.zeros(2), "b": np.zeros(3)}],
    ids=["none", "no axis", "different"],
)
def test_arrays_of_no_common_number_of_images_are_refused(arrays: dict[str, Array]) -> None:
    with pytest.raises(RunnerError, match="one number of images"):
        rows_of(arrays)


def test_what_waits_for_a_busy_engine_is_run_together() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner, BATCHING) as model:
            first = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            others = [asked(model, *numbers) for numbers in [(2,), (3, 4), (5,), (6,)]]
            await settle()
            for number in (1, 2, 6):
                runner.finish(number)
            answers = await asyncio.gather(first, *others)
            assert [echoed(answer) for answer in answers] == [[1], [2], [3, 4], [5], [6]]
            assert runner.log == [[1], [2, 3, 4, 5], [6]]

    run(main())


def test_without_batching_every_request_is_a_run() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner, replace(BATCHING, max_batch=1)) as model:
            tasks = [asked(model, number) for number in (1, 2, 3)]
            for number in (1, 2, 3):
                runner.finish(number)
            await asyncio.gather(*tasks)
            assert runner.log == [[1], [2], [3]]

    run(main())


def test_a_batch_is_not_larger_than_the_engine_takes() -> None:
    runner = GatedRunner(with_batch(1, 2))

    async def main() -> None:
        with serving(lambda: runner, replace(BATCHING, max_batch=2), with_batch(1, 2)) as model:
            tasks = [asked(model, number) for number in (1, 2, 3, 4)]
            await settle()
            first = runner.begun()
            for number in (1, 2, 3, 4):
                runner.finish(number)
            await asyncio.gather(*tasks)
            assert max(map(len, runner.log)) == 2
            assert first in ([1], [1, 2])

    run(main())


def test_a_request_larger_than_a_batch_runs_alone() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner, BATCHING) as model:
            first = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            large, small = asked(model, 2, 3, 4, 5, 6), asked(model, 7)
            await settle()
            for number in (1, 2, 7):
                runner.finish(number)
            answers = await asyncio.gather(first, large, small)
            assert echoed(answers[1]) == [2, 3, 4, 5, 6]
            assert runner.log == [[1], [2, 3, 4, 5, 6], [7]]

    run(main())


@pytest.mark.parametrize("max_batch", [1, 3])
def test_a_batch_smaller_than_the_engine_takes_is_filled_up(max_batch: int) -> None:
    signature = with_batch(3, 3)
    runner = GatedRunner(signature)

    async def main() -> None:
        with serving(lambda: runner, replace(BATCHING, max_batch=max_batch), signature) as model:
            first = asked(model, 1)
            await settle()
            assert runner.begun() == [1, 1, 1]
            second = asked(model, 2, 3)
            await settle()
            runner.finish(1)
            runner.finish(2)
            assert echoed(await first) == [1]
            assert echoed(await second) == [2, 3]
            assert runner.log == [[1, 1, 1], [2, 3, 3]]

    run(main())


def test_a_failed_batch_is_told_to_all_that_were_in_it() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner, BATCHING, backoff=()) as model:
            first = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            tasks = [asked(model, number) for number in (2, 3, 4, 5, 6)]
            await settle()
            runner.finish(1)
            runner.finish(2, RunnerError("on purpose"))
            await first
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            statuses = [end.status for end in ends if isinstance(end, RequestError)]
            assert statuses == [500, 500, 500, 500, 503]
            assert len({id(end) for end in ends}) == 5

    run(main())


def test_a_client_that_goes_leaves_the_batch_before_it_is_run() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner, BATCHING) as model:
            first = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            tasks = [asked(model, number) for number in (2, 3, 4)]
            await settle()
            tasks[0].cancel()
            await settle()
            runner.finish(1)
            assert echoed(await first) == [1]
            assert runner.begun() == [3, 4]
            tasks[1].cancel()  # too late to save anything, and nobody else is hurt
            await settle()
            runner.finish(3)
            assert echoed(await tasks[2]) == [4]

    run(main())


class Tracing(GatedRunner):
    """Tells when its stages worked."""

    def trace(self, feeds: Mapping[str, Array]) -> tuple[Span, ...]:
        self.log.append("traced")
        return (Span(stage="stream_0", device="cpu", start=0.0, end=0.5),)


def test_a_traced_request_is_run_alone_and_tells_its_stages() -> None:
    runner = Tracing()

    async def main() -> None:
        with serving(lambda: runner, BATCHING) as model:
            first = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            before, traced = asked(model, 2), asyncio.create_task(ask(model, 3, trace=True))
            await settle()
            after = asked(model, 4)
            await settle()
            for number in (1, 2, 3, 4):
                runner.finish(number)
            answers = await asyncio.gather(first, before, traced, after)
            assert [echoed(answer) for answer in answers] == [[1], [2], [3], [4]]
            assert [len(answer.spans) for answer in answers] == [0, 0, 1, 0]
            assert runner.log == [[1], [2], [3], "traced", [4]]

    run(main())


def test_a_runner_that_cannot_trace_gives_no_spans() -> None:
    runner = GatedRunner()
    runner.finish(1)

    async def main() -> None:
        with serving(lambda: runner) as model:
            answer = await ask(model, 1, trace=True)
            assert (echoed(answer), answer.spans) == ([1], ())

    run(main())


@pytest.mark.parametrize(
    ("changes", "batch", "words"),
    [
        ({"max_batch": 9}, (1, 8), "--max-batch is at most 8, .* not 9"),
        ({"max_batch": 2}, (1, 1), "--max-batch is at most 1, .* not 2"),
        ({"max_delay": 0.01}, (1, 8), "--max-delay is 0.01, and with --max-batch 1"),
    ],
)
def test_batching_that_the_engine_cannot_do_is_refused(
    changes: dict[str, Any], batch: tuple[int, int], words: str
) -> None:
    signature = with_batch(*batch)
    with pytest.raises(UsageError, match=words):
        ServedModel(signature, echo_runner, replace(SETTINGS, **changes), Recorder(signature))


def test_the_largest_batch_of_an_engine_is_allowed() -> None:
    signature = with_batch(8, 8)
    settings = replace(SETTINGS, max_batch=8, max_delay=0.01)
    model = ServedModel(signature, echo_runner, settings, Recorder(signature))
    assert model.settings.max_batch == 8
