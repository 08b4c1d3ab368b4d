"""An engine that fails: who is told what, and how it comes back or is given up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from served import (
    SETTINGS,
    SIGNATURE,
    Clock,
    GatedOpener,
    GatedRunner,
    ask,
    asked,
    echoed,
    images,
    join_threads,
    run,
    settle,
)
from served_failures import SECRET, fail_once, failing, opened_again, statuses

from parnet_deploy.errors import EngineError, RequestError, RunnerError
from parnet_deploy.serve.engine.model import ServedModel, State
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.spec import Array


@pytest.mark.parametrize(
    "error", [RunnerError(SECRET), ValueError(SECRET), MemoryError(SECRET), SystemExit(SECRET)]
)
def test_a_failed_run_is_told_to_everybody_and_the_engine_is_opened_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener) as model:
            opened_again(opener)
            ticket = model.admit()  # being prepared while the engine fails
            tasks = [asked(model, number) for number in (1, 2, 3)]
            await settle()
            assert first.begun() == [1]
            first.finish(1, error)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert [end.status for end in ends] == [500, 503, 503]  # type: ignore[union-attr]
            assert not any("secret" in str(end) for end in ends)
            assert all(end.retry_after for end in ends[1:])  # type: ignore[union-attr]
            opened_again(opener)
            assert (model.state, model.ready, model.live) == (State.FAILED, False, True)
            assert "started again" in model.message
            assert await statuses(asked(model, 4)) == [503]
            with ticket, pytest.raises(RequestError) as caught:
                await model.run(ticket, images(5))
            assert caught.value.status == 503
            assert model.waiting == 0
            opener.give(second)
            join_threads("reopen")
            assert (model.state, model.ready, model.message) == (State.READY, True, "")
            second.finish(6)
            assert echoed(await ask(model, 6)) == [6]
        assert first.log == [[1], "closed"]
        assert second.log == [[6], "closed"]

    run(main())
    assert SECRET in caplog.text  # for whoever runs the server


def test_an_engine_that_cannot_be_opened_again_is_given_up() -> None:
    first = GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, (0, 0)) as model:
            await fail_once(model, first)
            for _ in range(2):
                assert model.live
                opener.give(EngineError(SECRET))
            join_threads("reopen")
            assert (model.state, model.ready, model.live) == (State.FAILED, False, False)
            assert "could not be started again" in model.message
            assert await statuses(asked(model, 2)) == [503]
        assert model.state is State.STOPPED
        assert first.log == [[1], "closed"]

    run(main())


def test_a_second_try_may_open_it() -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, (0, 0)) as model:
            await fail_once(model, first)
            opener.give(EngineError(SECRET))
            opener.give(second)
            join_threads("reopen")
            assert model.ready
            second.finish(2)
            assert echoed(await ask(model, 2)) == [2]

    run(main())


def test_an_engine_that_opens_and_fails_in_turn_is_given_up() -> None:
    runners = [GatedRunner() for _ in range(3)]
    opener = GatedOpener(runners[0])

    async def main() -> None:
        with failing(opener, (0, 0)) as model:
            for number, runner in enumerate(runners):
                await fail_once(model, runner, number)
                if runner is not runners[-1]:
                    opener.give(runners[number + 1])
                join_threads("reopen")
            assert not model.live
        assert [runner.log[-1] for runner in runners] == ["closed"] * 3

    run(main())


def test_a_good_run_is_a_new_beginning() -> None:
    runners = [GatedRunner() for _ in range(4)]
    opener = GatedOpener(runners[0])

    async def main() -> None:
        with failing(opener, (0,)) as model:
            for number, runner in enumerate(runners[:-1]):
                runner.finish(number + 100)
                assert echoed(await ask(model, number + 100)) == [number + 100]
                assert runner.begun() == [number + 100]
                await fail_once(model, runner, number)
                opener.give(runners[number + 1])
                join_threads("reopen")
                assert model.ready

    run(main())


def test_a_good_run_beside_a_failed_one_is_none() -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, (0,), contexts=2) as model:
            await fail_once(model, first)
            opener.give(second)
            join_threads("reopen")
            bad, good = asked(model, 2), asked(model, 3)
            await settle()
            assert sorted([second.begun(), second.begun()]) == [[2], [3]]
            second.finish(2, RunnerError(SECRET))
            assert await statuses(bad) == [500]
            second.finish(3)
            assert echoed(await good) == [3]
            join_threads("reopen")
            assert not model.live  # its only try is used up
            assert opener.asked.qsize() == 2

    run(main())


def test_an_engine_that_fails_its_warm_up_is_not_taken() -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)
    first.finish(0)

    async def main() -> None:
        with failing(opener, (0,), warm_up=1) as model:
            assert first.begun() == [0]
            await fail_once(model, first)
            second.finish(0, RunnerError(SECRET))
            opener.give(second)
            join_threads("reopen")
            assert not model.live
            assert second.log == [[0], "closed"]

    run(main())


def test_a_run_beside_a_failed_one_ends_before_its_runner_is_closed() -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, contexts=2) as model:
            opened_again(opener)
            bad, good = asked(model, 1), asked(model, 2)
            await settle()
            assert sorted([first.begun(), first.begun()]) == [[1], [2]]
            first.finish(1, RunnerError(SECRET))
            assert await statuses(bad) == [500]
            assert model.state is State.FAILED
            assert "closed" not in first.log
            assert opener.asked.empty()
            first.finish(2)
            assert echoed(await good) == [2]
            opened_again(opener)
            assert first.log[-1] == "closed"
            opener.give(second)
            join_threads("reopen")
            assert model.ready

    run(main())


def test_two_runs_that_fail_at_once_are_one_failure() -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, contexts=2) as model:
            opened_again(opener)
            tasks = [asked(model, 1), asked(model, 2)]
            await settle()
            first.begun()
            first.begun()
            first.finish(1, RunnerError(SECRET))
            first.finish(2, RunnerError(SECRET))
            assert await statuses(*tasks) == [500, 500]
            opener.give(second)
            join_threads("reopen")
            assert model.ready
            opened_again(opener)
            assert opener.asked.empty()
            assert first.log.count("closed") == 1

    run(main())


def test_an_opening_that_does_not_end_makes_it_not_live() -> None:
    clock, first, second = Clock(), GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, clock=clock, stall=60, timeout=1000) as model:
            opened_again(opener)
            await fail_once(model, first)
            opened_again(opener)
            clock.now += 59
            assert model.live
            clock.now += 2
            assert not model.live
            opener.give(second)
            join_threads("reopen")
            second.finish(2)
            assert echoed(await ask(model, 2)) == [2]
            assert (model.live, model.ready) == (True, True)

    run(main(), clock)


class Short(GatedRunner):
    """Gives a row too few."""

    def run(self, feeds: Any) -> dict[str, Array]:
        return {name: array[:-1] for name, array in super().run(feeds).items()}


class Unclosable(GatedRunner):
    """Fails to close, too."""

    def close(self) -> None:
        super().close()
        raise RunnerError(SECRET)


def test_an_engine_that_gives_too_few_rows_has_failed() -> None:
    first, second = Short(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener) as model:
            task = asked(model, 1, 2)
            first.finish(1)
            assert await statuses(task) == [500]
            opener.give(second)
            join_threads("reopen")
            assert model.ready

    run(main())


def test_an_engine_that_cannot_be_closed_is_replaced_all_the_same() -> None:
    first, second = Unclosable(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener) as model:
            await fail_once(model, first)
            opener.give(second)
            join_threads("reopen")
            assert model.ready
        assert first.log == [[1], "closed"]

    run(main())


def test_failures_are_counted() -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)
    recorder = Recorder(SIGNATURE)
    model = ServedModel(SIGNATURE, opener, SETTINGS, recorder, backoff=(0,))
    model.start()

    async def main() -> None:
        assert recorder.levels().ready
        await fail_once(model, first)
        assert (recorder.levels().ready, recorder.levels().engine_failures) == (False, 1)
        opener.give(second)
        join_threads("reopen")
        assert recorder.levels().ready
        with recorder.counted():
            assert recorder.runs == {}  # a failed run is no run

    run(main())
    model.close()
