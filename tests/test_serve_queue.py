"""The queue between coroutines and threads: a job is taken once, or dropped and never taken."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from served import PATIENCE, Clock, Desk, run, settle, works

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.queue import Job, JobQueue
from parnet_deploy.serve.engine.unanswered import engine_down, stopped, timed_out


def test_jobs_come_out_in_order_and_each_caller_gets_its_own_answer() -> None:
    async def main() -> None:
        desk = Desk()
        waiting = [desk.put(name) for name in "abc"]
        await settle()
        assert len(desk.queue) == 3
        for expected in "abc":
            (job,) = desk.take()
            assert job.work == expected
            job.answer(expected.upper())
        assert await asyncio.gather(*waiting) == ["A", "B", "C"]
        assert len(desk.queue) == 0

    run(main())


def test_a_job_whose_caller_is_cancelled_is_never_taken() -> None:
    async def main() -> None:
        desk = Desk()
        first, second = desk.put("a"), desk.put("b")
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled()
        assert len(desk.queue) == 1
        assert works(desk.take()) == ["b"]
        second.cancel()

    run(main())


def test_a_job_that_was_taken_before_its_caller_was_cancelled_is_answered_to_nobody() -> None:
    async def main() -> None:
        desk = Desk()
        waiting = desk.put("a")
        await settle()
        (job,) = desk.take()
        waiting.cancel()
        job.answer("A")
        await settle()
        assert waiting.cancelled()

    run(main())


def test_a_caller_cancelled_in_the_moment_of_the_answer_is_cancelled() -> None:
    async def main() -> None:
        desk = Desk()
        waiting = desk.put("a")
        await settle()
        (job,) = desk.take()
        job.future.set_result("A")
        waiting.cancel()
        await settle()
        assert waiting.cancelled()

    run(main())


def test_a_job_that_waits_at_its_deadline_is_refused_and_never_taken() -> None:
    desk = Desk()

    async def main() -> None:
        first, second = desk.put("a", timeout=1), desk.put("b", timeout=5)
        await settle()
        desk.clock.now += 2
        await settle()
        with pytest.raises(RequestError) as caught:
            await first
        assert caught.value.status == 504
        assert works(desk.take()) == ["b"]
        second.cancel()

    run(main(), desk.clock)


def test_a_late_job_is_not_taken_though_the_loop_has_not_noticed() -> None:
    desk = Desk()

    async def main() -> None:
        late, good = desk.put("late", timeout=1), desk.put("good", timeout=5)
        await settle()
        desk.clock.now += 2  # the loop does not turn before the job is taken
        assert works(desk.take()) == ["good"]
        await settle()
        with pytest.raises(RequestError) as caught:
            await late
        assert caught.value.status == 504
        good.cancel()

    run(main(), desk.clock)


def test_late_jobs_in_the_middle_are_left_out_of_a_batch() -> None:
    desk = Desk(limit=2)

    async def main() -> None:
        waiting = [desk.put(name, timeout=1 if name in "bcd" else 5) for name in "abcdef"]
        await settle()
        desk.clock.now += 2
        assert works(desk.take()) == ["a", "e"]
        assert works(desk.take()) == ["f"]
        await settle()
        for task in waiting:
            task.cancel()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end).__name__ for end in ends] == [
            "CancelledError",
            *["CountedError"] * 3,
            *["CancelledError"] * 2,
        ]

    run(main(), desk.clock)


def test_the_deadline_of_a_job_that_was_taken_ends_its_caller_only() -> None:
    desk = Desk()

    async def main() -> None:
        waiting = desk.put("a", timeout=1)
        await settle()
        (job,) = desk.take()
        desk.clock.now += 2
        await settle()
        with pytest.raises(RequestError) as caught:
            await waiting
        assert caught.value.status == 504
        job.answer("A")  # whoever did it does not know
        await settle()

    run(main(), desk.clock)


def test_refused_jobs_get_an_error_each_and_new_ones_at_once() -> None:
    async def main() -> None:
        desk = Desk()
        waiting = [desk.put(name) for name in "ab"]
        await settle()
        desk.queue.refuse(engine_down)
        assert len(desk.queue) == 0
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [error.status for error in errors if isinstance(error, RequestError)] == [503, 503]
        assert errors[0] is not errors[1]
        with pytest.raises(RequestError, match="failed before"):
            await desk.put("c")
        desk.queue.accept()
        again = desk.put("d")
        await settle()
        (job,) = desk.take()
        job.answer("D")
        assert await again == "D"

    run(main())


def test_a_closed_queue_stays_closed_and_lets_its_threads_go() -> None:
    async def main() -> None:
        desk = Desk()
        taken = [desk.taking(), desk.taking()]
        desk.queue.close(stopped)
        assert [thread.get(timeout=PATIENCE) for thread in taken] == [[], []]
        desk.queue.accept()
        with pytest.raises(RequestError, match="stopped"):
            await desk.put("a")

    run(main())


def test_an_answer_for_a_loop_that_is_closed_is_dropped() -> None:
    jobs: list[Job[str, str]] = []

    async def main() -> None:
        jobs.append(Job("a", queued=0.0, deadline=1.0))

    run(main())
    jobs[0].answer("A")
    jobs[0].refuse(timed_out())
    assert not jobs[0].future.done()


@pytest.mark.parametrize("end", ["deadline", "refused", "cancelled", "answered"])
def test_what_a_request_held_is_freed_with_its_end(end: str) -> None:
    """By counting references: under load the garbage collector comes late."""

    class Arrays:
        pass

    clock = Clock()
    queue: JobQueue[Arrays, str] = JobQueue(clock=clock)

    async def ask(arrays: Arrays) -> str:
        return await queue.result(Job(arrays, queued=clock.now, deadline=clock.now + 1))

    async def main() -> None:
        arrays = Arrays()
        freed = weakref.ref(arrays)
        waiting = asyncio.create_task(ask(arrays))
        del arrays
        await settle()
        assert freed() is not None
        if end == "deadline":
            clock.now += 2
        elif end == "refused":
            queue.refuse(engine_down)
        elif end == "cancelled":
            waiting.cancel()
        else:
            queue.take()[0].answer("A")
        await settle()
        await asyncio.gather(waiting, return_exceptions=True)
        del waiting
        await settle()
        assert freed() is None

    gc.collect()
    gc.disable()
    try:
        run(main(), clock)
    finally:
        gc.enable()
