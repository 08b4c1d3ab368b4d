"""An engine that has failed, or is being opened again, while the server ends."""

from __future__ import annotations

import asyncio

import pytest
from served import (
    GatedOpener,
    GatedRunner,
    asked,
    join_threads,
    run,
    settle,
)
from served_failures import SECRET, fail_once, failing, opened_again, statuses

import parnet_deploy.serve.engine.model as model_module
from parnet_deploy.errors import RunnerError
from parnet_deploy.serve.engine.model import State


def test_closing_does_not_wait_for_the_next_try() -> None:
    first = GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, (3600,)) as model:
            opened_again(opener)
            await fail_once(model, first)
        join_threads("reopen")
        assert opener.asked.empty()
        assert first.log == [[1], "closed"]

    run(main())


def test_an_engine_that_opens_when_all_has_ended_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "CLOSING", 0.0)
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener) as model:
            opened_again(opener)
            await fail_once(model, first)
            opened_again(opener)
            assert not model.close()  # does not wait for what is being opened
            opener.give(second)
            join_threads("reopen")
            assert model.state is State.STOPPED
            assert second.log == ["closed"]

    run(main())


def test_closing_waits_a_moment_for_what_is_being_opened() -> None:
    first, second = GatedRunner(), GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener) as model:
            opened_again(opener)
            await fail_once(model, first)
            opened_again(opener)
            closing = asyncio.create_task(asyncio.to_thread(model.close))
            opener.give(second)
            assert await closing
            assert second.log == ["closed"]

    run(main())


def test_an_engine_that_fails_while_it_drains_keeps_nobody_waiting() -> None:
    first = GatedRunner()
    opener = GatedOpener(first)

    async def main() -> None:
        with failing(opener, (3600,)) as model:
            tasks = [asked(model, 1), asked(model, 2)]
            await settle()
            assert first.begun() == [1]
            model.drain()
            drained = asyncio.create_task(model.drained())
            first.finish(1, RunnerError(SECRET))
            assert await statuses(*tasks) == [500, 503]
            await drained
            assert model.state is State.DRAINING

    run(main())
