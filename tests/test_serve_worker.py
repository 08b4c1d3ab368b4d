"""Threads that do what waits: they survive it, and end with their queue."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from served import PATIENCE, Desk, run, settle

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.queue import Job
from parnet_deploy.serve.engine.unanswered import stopped
from parnet_deploy.serve.engine.worker import Workers


def working(do: Callable[[list[Job[str, str]]], None]) -> tuple[Desk, Workers[str, str]]:
    desk = Desk()
    return desk, Workers(desk.queue, do, count=1, name="test")


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(1)])
def test_a_thread_survives_whatever_its_work_raises(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def do(jobs: list[Job[str, str]]) -> None:
        if jobs[0].work == "bad":
            raise error
        jobs[0].answer("well")

    async def main() -> None:
        desk, workers = working(do)
        workers.start()
        with pytest.raises(RequestError) as caught:
            await desk.put("bad")
        assert caught.value.status == 500
        assert "secret" not in str(caught.value)
        assert await desk.put("good") == "well"
        desk.queue.close(stopped)
        assert workers.join(PATIENCE)

    run(main())
    assert "could not be answered" in caplog.text


def test_a_thread_that_does_not_end_is_not_waited_for_for_ever() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def do(jobs: list[Job[str, str]]) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    async def main() -> None:
        desk, workers = working(do)
        workers.start()
        waiting = desk.put("a")
        await settle()
        assert begun.wait(PATIENCE)
        desk.queue.close(stopped)
        assert not workers.join(0.0)
        go_on.set()
        assert workers.join(PATIENCE)
        waiting.cancel()

    run(main())
