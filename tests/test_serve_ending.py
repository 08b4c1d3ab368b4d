"""How a served model ends: it drains, and it closes, whatever is under way."""

from __future__ import annotations

import asyncio
import threading

import pytest
from served import (
    PATIENCE,
    SETTINGS,
    SIGNATURE,
    GatedOpener,
    GatedRunner,
    ask,
    asked,
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

import parnet_deploy.serve.engine.model as model_module
from parnet_deploy.errors import EngineError
from parnet_deploy.serve.engine.model import ServedModel, State
from parnet_deploy.serve.recording import Recorder


def test_draining_lets_nobody_in_and_answers_who_is() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            running, waiting = asked(model, 1), asked(model, 2)
            await settle()
            assert runner.begun() == [1]
            ticket = model.admit()  # still being prepared
            model.drain()
            assert (model.state, model.ready, model.live) == (State.DRAINING, False, True)
            refused(await end_of(asked(model, 4)), 503)
            drained = asyncio.create_task(model.drained())
            for number in (1, 2, 3):
                runner.finish(number)
            assert [echoed(task) for task in await asyncio.gather(running, waiting)] == [[1], [2]]
            await settle()
            assert not drained.done()
            with ticket:
                assert echoed(await model.run(ticket, images(3))) == [3]
                await settle()
                assert not drained.done()
            await drained
        assert model.state is State.STOPPED
        assert runner.log == [[1], [2], [3], "closed"]

    run(main())


def test_draining_ends_at_once_where_nobody_is_in() -> None:
    async def main() -> None:
        with serving(echo_runner) as model:
            model.drain()
            await model.drained()

    run(main())


def test_draining_before_the_start_is_kept() -> None:
    model = ServedModel(SIGNATURE, echo_runner, SETTINGS, Recorder(SIGNATURE))
    model.drain()
    model.start()
    assert model.state is State.DRAINING
    model.close()


def test_draining_is_not_stopped_by_clients_that_go() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            running, waiting = asked(model, 1), asked(model, 2)
            await settle()
            assert runner.begun() == [1]
            model.drain()
            drained = asyncio.create_task(model.drained())
            await settle()
            assert not drained.done()
            running.cancel()
            waiting.cancel()
            await drained
            runner.finish(1)
        assert runner.log == [[1], "closed"]

    run(main())


def test_closing_refuses_what_waits_and_lets_a_run_end() -> None:
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            running, waiting = asked(model, 1), asked(model, 2)
            await settle()
            assert runner.begun() == [1]
            closing = asyncio.create_task(asyncio.to_thread(model.close))
            refused(await end_of(waiting), 503)
            runner.finish(1)
            assert echoed(await running) == [1]
            assert await closing
            assert runner.log == [[1], "closed"]
            assert model.state is State.STOPPED
            refused(await end_of(asked(model, 3)), 503)
        assert runner.log == [[1], "closed"]  # closed once, though it was asked twice

    run(main())


def test_a_runner_is_not_freed_under_a_run_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_module, "CLOSING", 0.0)
    runner = GatedRunner()

    async def main() -> None:
        with serving(lambda: runner) as model:
            running = asked(model, 1)
            await settle()
            assert runner.begun() == [1]
            assert not model.close()
            assert runner.log == [[1]]
            runner.finish(1)
            assert echoed(await running) == [1]
            join_threads("engine-0")
            join_threads("reopen")
            assert runner.log == [[1], "closed"]
            assert model.close()

    run(main())


def test_closing_tells_of_a_decoder_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "CLOSING", 0.0)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    async def main() -> None:
        with serving(echo_runner) as model, model.admit() as ticket:
            decoding = asyncio.create_task(model.prepare(ticket, slow))
            await settle()
            assert begun.wait(PATIENCE)
            assert not model.close()
            go_on.set()
            await decoding
            for name in ("decode-0", "decode-1", "engine-0"):  # they have no time to end in
                join_threads(name)
            assert model.close()

    run(main())


def test_closing_tells_of_a_first_opening_that_does_not_end() -> None:
    first = GatedRunner()
    opener = GatedOpener(first)
    opener()  # takes the runner away: the opening waits for another
    opener.asked.get()
    model = ServedModel(SIGNATURE, opener, SETTINGS, Recorder(SIGNATURE))

    def start() -> None:
        with pytest.raises(EngineError, match="closed while it was being opened"):
            model.start()

    starting = threading.Thread(target=start)
    starting.start()
    opener.asked.get(timeout=PATIENCE)
    assert not model.close()
    opener.give(first)
    starting.join(PATIENCE)
    assert first.log == ["closed"]
    assert model.close()


def test_a_run_that_outlives_its_event_loop_does_no_harm() -> None:
    runner = GatedRunner()

    async def leave() -> None:
        task = asked(model, 1)
        await settle()
        assert runner.begun() == [1]
        task.cancel()

    with serving(lambda: runner) as model:
        run(leave())
        runner.finish(1)
        runner.finish(2)
        assert echoed(run(ask(model, 2))) == [2]
