"""A served model: who is let in, who waits, and whose work is never done."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
from served import (
    PATIENCE,
    SETTINGS,
    SIGNATURE,
    Clock,
    GatedRunner,
    ask,
    asked,
    counting_runner,
    echo_runner,
    echoed,
    end_of,
    images,
    join_threads,
    refused,
    run,
    serving,
    settle,
)

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.model import ServedModel, State
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.spec import Array


def test_it_answers_and_says_what_it_took() -> None:
    async def main() -> None:
        with serving(echo_runner) as model:
            assert (model.state, model.ready, model.live) == (State.READY, True, True)
            assert model.message == ""
            answer = await ask(model, 7, 8)
            assert echoed(answer) == [7, 8]
            assert min(answer.prepare, answer.queue, answer.infer) >= 0
            assert answer.spans == ()

    run(main())


def test_nobody_is_let_in_before_it_is_started() -> None:
    model = ServedModel(SIGNATURE, echo_runner, SETTINGS, Recorder(SIGNATURE))
    assert (model.state, model.ready, model.live) == (State.STARTING, False, True)
    with pytest.raises(RequestError, match="being started") as caught:
        model.admit()
    assert caught.value.status == 503
    assert caught.value.retry_after


def test_one_more_than_may_wait_is_refused_at_once() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner, replace(SETTINGS, queue=2)) as model:
            running = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            assert model.waiting == 0  # what runs does not wait
            waiting = [asked(model, 2), asked(model, 3)]
            await settle()
            assert model.waiting == 2
            full = refused(await end_of(asked(model, 4)), 503)
            assert full.retry_after
            assert "2 requests wait" in str(full)
            waiting[0].cancel()
            await settle()
            assert model.waiting == 1
            last = asked(model, 5)  # a place is free again
            await settle()
            for number in (1, 3, 5):
                runner.finish(number)
            answers = await asyncio.gather(running, waiting[1], last)
            assert [echoed(answer) for answer in answers] == [[1], [3], [5]]
            assert runner.log == [[1], [3], [5]]
            assert model.waiting == 0

    run(main())


def test_what_is_being_prepared_waits_as_well() -> None:
    async def main() -> None:
        with serving(echo_runner, replace(SETTINGS, queue=1)) as model:
            with model.admit():
                assert model.waiting == 1
                with pytest.raises(RequestError, match="limit"):
                    model.admit()
            assert model.waiting == 0
            assert echoed(await ask(model, 1)) == [1]

    run(main())


def test_a_ticket_counts_once_however_often_it_ends() -> None:
    async def main() -> None:
        with serving(echo_runner) as model:
            ticket = model.admit()
            with ticket:
                pass
            with ticket:
                pass
            assert model.waiting == 0
            with pytest.raises(ValueError, match="on purpose"), model.admit():
                raise ValueError("on purpose")
            assert model.waiting == 0
            model.drain()
            async with asyncio.timeout(PATIENCE):
                await model.drained()  # not where somebody is counted out twice

    run(main())


def test_work_is_prepared_on_another_thread_and_its_errors_come_back() -> None:
    async def main() -> None:
        with serving(echo_runner) as model, model.admit() as ticket:
            here = threading.current_thread().name
            there = await model.prepare(ticket, lambda: threading.current_thread().name)
            assert there != here
            assert there.startswith("decode")
            with pytest.raises(ZeroDivisionError):
                await model.prepare(ticket, lambda: 1 // 0)

    run(main())


def test_a_request_whose_client_has_gone_is_not_prepared() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[str]()

    def slow() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        done.append("slow")

    async def one(model: ServedModel, name: str) -> None:
        with model.admit() as ticket:
            await model.prepare(ticket, slow if name == "slow" else lambda: done.append(name))

    async def main() -> None:
        with serving(echo_runner) as model:
            tasks = [asyncio.create_task(one(model, name)) for name in ("slow", "gone", "good")]
            await settle()
            assert begun.wait(PATIENCE)
            tasks[1].cancel()
            await settle()
            assert model.waiting == 2
            go_on.set()
            await asyncio.gather(tasks[0], tasks[2])
            assert tasks[1].cancelled()
            assert done == ["slow", "good"]
            assert model.waiting == 0

    run(main())


def test_a_request_whose_client_has_gone_is_not_run() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            running, gone, good = asked(model, 1), asked(model, 2), asked(model, 3)
            await settle()
            assert runner.begun() == [1]
            gone.cancel()
            await settle()
            runner.finish(1)
            runner.finish(3)
            assert echoed(await running) == [1]
            assert echoed(await good) == [3]
            assert runner.log == [[1], [3]]

    run(main())


def test_a_client_that_goes_during_its_run_takes_nothing_from_others() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            gone, good = asked(model, 1), asked(model, 2)
            await settle()
            assert runner.begun() == [1]
            gone.cancel()
            await settle()
            assert gone.cancelled()
            runner.finish(1)
            runner.finish(2)
            assert echoed(await good) == [2]
            assert runner.log == [[1], [2]]

    run(main())


def test_a_request_that_waits_at_its_deadline_is_never_run() -> None:
    clock, runner = Clock(), GatedRunner()

    async def main() -> None:
        with serving(lambda: runner, replace(SETTINGS, timeout=10), clock=clock) as model:
            first = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            clock.now += 5
            second = asked(model, 2)
            await settle()
            clock.now += 6
            third = asked(model, 3)
            await settle()
            refused(await end_of(first), 504)  # it runs, and its caller has no time left
            assert not second.done()
            clock.now += 5
            refused(await end_of(second), 504)
            runner.finish(1)
            runner.finish(3)
            assert echoed(await third) == [3]
            assert runner.log == [[1], [3]]
            assert model.waiting == 0

    run(main(), clock)


def test_a_request_that_is_prepared_at_its_deadline_is_never_run() -> None:
    clock, runner = Clock(), GatedRunner()
    begun, go_on, done = threading.Event(), threading.Event(), list[str]()

    def slow() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        done.append("slow")

    async def one(model: ServedModel, number: int) -> None:
        with model.admit() as ticket:
            await model.prepare(ticket, slow if number == 1 else lambda: done.append("never"))
            await model.run(ticket, images(number))

    async def main() -> None:
        with serving(lambda: runner, replace(SETTINGS, timeout=10), clock=clock) as model:
            tasks = [asyncio.create_task(one(model, number)) for number in (1, 2)]
            await settle()
            assert begun.wait(PATIENCE)
            clock.now += 11
            for task in tasks:
                refused(await end_of(task), 504)
            assert model.waiting == 0
            go_on.set()
        join_threads("decode-0")
        assert done == ["slow"]
        assert runner.log == ["closed"]

    run(main(), clock)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "missing"),
        ({"images": np.zeros((1, 3, 2, 2), np.float64)}, "float64"),
        ({"images": np.zeros((1, 3, 2, 3), np.float32)}, "is expected"),
        ({"images": np.zeros((0, 3, 2, 2), np.float32)}, "0 images"),
        ({"images": np.zeros((9, 3, 2, 2), np.float32)}, "1 to 8"),
        ({"images": np.zeros((1, 3, 2, 2), np.float32), "more": np.zeros(1)}, "not inputs"),
    ],
)
def test_what_does_not_fit_never_reaches_the_engine(feeds: dict[str, Array], words: str) -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            with pytest.raises(RequestError, match=words) as caught, model.admit() as ticket:
                await model.run(ticket, feeds)
            assert caught.value.status == 400
            assert model.state is State.READY
            assert model.waiting == 0
            assert runner.log == []

    run(main())


def test_a_stalled_run_makes_it_neither_ready_nor_live() -> None:
    clock, runner = Clock(), GatedRunner()
    settings = replace(SETTINGS, timeout=1000, stall=60)

    async def main() -> None:
        with serving(lambda: runner, settings, clock=clock) as model:
            running = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            clock.now += 59
            assert (model.ready, model.live) == (True, True)
            clock.now += 2
            assert (model.ready, model.live) == (False, False)
            assert "does not answer" in model.message
            refused(await end_of(asked(model, 2)), 503)
            runner.finish(1)
            assert echoed(await running) == [1]
            model.drain()
            await model.drained()
        assert model.live

    run(main(), clock)


@pytest.mark.parametrize(
    ("contexts", "max_batch", "delay"), [(1, 1, 0.0), (2, 1, 0.0), (1, 8, 0.0), (2, 8, 0.0005)]
)
def test_eight_clients_get_their_own_answers(contexts: int, max_batch: int, delay: float) -> None:
    settings = replace(
        SETTINGS, queue=8, contexts=contexts, max_batch=max_batch, max_delay=delay, decode_threads=2
    )
    sizes: list[int] = []

    async def client(model: ServedModel, first: int) -> int:
        right = 0
        for number in range(first, first + 250):
            with model.admit() as ticket:
                feeds = (
                    await model.prepare(ticket, lambda n=number: images(n, -n))  # type: ignore[misc]
                    if number % 3
                    else images(number, -number)
                )
                right += echoed(await model.run(ticket, feeds)) == [number, -number]
        return right

    async def main() -> None:
        with serving(lambda: counting_runner(sizes), settings) as model:
            clients = [client(model, 1000 * (index + 1)) for index in range(8)]
            assert await asyncio.gather(*clients) == [250] * 8
            assert model.waiting == 0
            model.drain()
            await model.drained()

    run(main())
    assert sum(sizes) == 2 * 2000
    assert max(sizes) <= max(2, max_batch)
