"""A lone request whose run is short is run on the event loop's thread; all others are not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest
from served import (
    SETTINGS,
    SIGNATURE,
    Clock,
    GatedRunner,
    asked,
    echo,
    echoed,
    images,
    refused,
    run,
    serving,
    settle,
)

from parnet_deploy.errors import RequestError
from parnet_deploy.runtime.base import FunctionRunner
from parnet_deploy.serve.engine.inference import Answer
from parnet_deploy.serve.engine.model import ServedModel
from parnet_deploy.serve.http.watchdog import HELD, watching
from parnet_deploy.serve.transport.traffic import Traffic
from parnet_deploy.spec import Array

SHORT = SETTINGS.inline_below


class Engine:
    """Notes which thread runs it, and takes as long as it is told.

    Attributes:
        clock: by which it does.
        seconds: of the next runs.
        threads: the names of the threads that ran it.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.seconds = 0.001
        self.threads: list[str] = []
        self.error: Exception | None = None

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self.threads.append(threading.current_thread().name)
        self.clock.now += self.seconds
        if self.error is not None:
            raise self.error
        return echo(feeds)

    def opener(self) -> FunctionRunner:
        return FunctionRunner(self, inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs)

    def is_on_the_loop(self) -> bool:
        """Whether the last run was."""
        return self.threads[-1] == threading.main_thread().name


async def ask(model: ServedModel, number: float, *, lone: bool, trace: bool = False) -> Answer:
    with model.admit() as ticket:
        return await model.run(ticket, images(number), lone=lone, trace=trace)


def test_only_a_lone_request_is() -> None:
    engine = Engine()

    async def main() -> None:
        with serving(engine.opener, clock=engine.clock) as model:
            await ask(model, 1, lone=True)
            assert not engine.is_on_the_loop()  # nothing is known of the engine yet
            answer = await ask(model, 2, lone=True)
            assert engine.is_on_the_loop()
            assert echoed(answer) == [2]
            assert answer.queue == 0
            assert answer.infer == pytest.approx(engine.seconds)
            await ask(model, 3, lone=False)
            assert not engine.is_on_the_loop()
            await ask(model, 4, lone=True, trace=True)
            assert not engine.is_on_the_loop()  # that is two runs
            with model.admit():
                await ask(model, 5, lone=True)  # a transport may not know of another's
                assert not engine.is_on_the_loop()

    run(main(), engine.clock)


def test_nobody_is_held_up_by_a_long_run() -> None:
    engine = Engine()
    engine.seconds = 1.01 * SHORT

    async def main() -> None:
        with serving(engine.opener, clock=engine.clock) as model:
            for _ in range(3):
                await ask(model, 1, lone=True)
                assert not engine.is_on_the_loop()
            engine.seconds = SHORT / 2
            await ask(model, 1, lone=True)
            assert not engine.is_on_the_loop()
            await ask(model, 1, lone=True)
            assert engine.is_on_the_loop()
            engine.seconds = 10 * SHORT  # one that is much longer than was to be expected
            await ask(model, 1, lone=True)
            await ask(model, 1, lone=True)
            assert not engine.is_on_the_loop()

    run(main(), engine.clock)


def test_none_is_where_that_is_turned_off() -> None:
    engine = Engine()

    async def main() -> None:
        settings = replace(SETTINGS, inline_below=0)
        with serving(engine.opener, settings, clock=engine.clock) as model:
            for _ in range(3):
                await ask(model, 1, lone=True)
                assert not engine.is_on_the_loop()

    run(main(), engine.clock)


def test_a_larger_batch_is_expected_to_take_longer() -> None:
    """What single images take tells nothing of several."""
    engine = Engine()

    async def main() -> None:
        with serving(engine.opener, clock=engine.clock) as model:
            for _ in range(2):
                await ask(model, 1, lone=True)
            assert engine.is_on_the_loop()
            with model.admit() as ticket:
                await model.run(ticket, images(1, 2, 3), lone=True)
            assert not engine.is_on_the_loop()

    run(main(), engine.clock)


def test_a_request_that_is_late_already_is_never_run() -> None:
    engine = Engine()

    async def main() -> None:
        with serving(engine.opener, clock=engine.clock) as model:
            await ask(model, 1, lone=True)
            runs = len(engine.threads)
            with model.admit() as ticket:
                engine.clock.now += SETTINGS.timeout
                with pytest.raises(RequestError) as caught:
                    await model.run(ticket, images(1), lone=True)
            refused(caught.value, 504)
            assert len(engine.threads) == runs

    run(main(), engine.clock)


def test_who_is_to_wait_for_others_waits() -> None:
    engine = Engine()
    settings = replace(SETTINGS, max_batch=2, max_delay=0.001, timeout=60)

    async def main() -> None:
        with serving(engine.opener, settings) as model:
            for _ in range(3):
                await ask(model, 1, lone=True)
                assert not engine.is_on_the_loop()

    run(main())


def test_an_answer_that_comes_after_the_deadline_is_none() -> None:
    engine = Engine()

    async def main() -> None:
        with serving(engine.opener, clock=engine.clock) as model:
            await ask(model, 1, lone=True)
            engine.seconds = SETTINGS.timeout + 1
            with pytest.raises(RequestError) as caught:
                await ask(model, 2, lone=True)
            refused(caught.value, 504)
            assert engine.is_on_the_loop()
            assert model.holding_for() == 0
            assert model.waiting == 0

    run(main(), engine.clock)


def test_an_engine_that_fails_is_replaced() -> None:
    engine = Engine()

    async def main() -> None:
        with serving(engine.opener, clock=engine.clock, backoff=(0,)) as model:
            await ask(model, 1, lone=True)
            engine.error = ValueError("on purpose")
            with pytest.raises(RequestError) as caught:
                await ask(model, 2, lone=True)
            refused(caught.value, 500)
            assert engine.is_on_the_loop()
            assert model.holding_for() == 0
            engine.error = None
            async with asyncio.timeout_at(engine.clock.now + 1):
                while not model.ready:
                    await asyncio.sleep(0)
            assert echoed(await ask(model, 3, lone=True)) == [3]

    run(main(), engine.clock)


def test_how_long_the_loop_has_been_held_up() -> None:
    held: list[float] = []

    class Looking(Engine):
        def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            found = super().__call__(feeds)
            held.append(model.holding_for())
            return found

    engine = Looking()
    model: ServedModel

    async def main() -> None:
        nonlocal model
        with serving(engine.opener, clock=engine.clock) as model:
            await ask(model, 1, lone=True)
            await ask(model, 2, lone=True)
            assert model.holding_for() == 0

    run(main(), engine.clock)
    assert held == [0, pytest.approx(engine.seconds)]


def test_a_busy_engine_is_waited_for() -> None:
    """Its client has gone, so that nobody is in; the run goes on all the same."""
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            runner.finish(1)
            await ask(model, 1, lone=False)  # it is known to be short
            gone = asked(model, 2)
            await settle()
            assert runner.begun() == [1]
            assert runner.begun() == [2]
            gone.cancel()
            await settle()
            later = asyncio.create_task(ask(model, 3, lone=True))
            await settle()
            assert model.waiting == 1
            runner.finish(2)
            runner.finish(3)
            assert echoed(await later) == [3]

    run(main())


def test_a_transport_knows_of_requests_that_have_not_begun() -> None:
    traffic = Traffic()
    assert not traffic.is_lone()  # nobody has told it of any
    tasks: set[int] = set()
    traffic.tasks = tasks
    tasks.add(1)
    assert traffic.is_lone()
    tasks.add(2)
    assert not traffic.is_lone()


def test_a_process_that_is_held_up_for_too_long_ends(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[object] = []
    over = threading.Event()

    def end(status: int) -> None:
        ended.append(status)
        over.set()

    with watching(lambda: 0.5, stall=0.4, flush=lambda: ended.append("flushed"), end=end):
        assert over.wait(10)
    assert ended == ["flushed", HELD]
    assert "does not answer" in caplog.text


def test_a_process_that_is_held_up_for_a_while_goes_on() -> None:
    looked = threading.Semaphore(0)

    def holding_for() -> float:
        looked.release()
        return 0.2

    ended: list[int] = []
    with watching(holding_for, stall=0.2, flush=lambda: None, end=ended.append):
        for _ in range(3):
            assert looked.acquire(timeout=10)
    assert ended == []
