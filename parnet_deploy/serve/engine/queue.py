"""What waits to be done: coroutines put jobs in, threads take them out.

One lock guards every queue, and whether a job waits is whether it is in there. So a job is either
taken, and then run once, or dropped, and then never run, whichever comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.unanswered import timed_out

Work = TypeVar("Work")
Result = TypeVar("Result")

Refuse = Callable[[], RequestError]
"""Makes the error that one waiting caller gets: each needs one of its own."""


class Job(Generic[Work, Result]):
    """Work that a coroutine waits for and a thread does.

    Attributes:
        work: what is to be done.
        rows: its images, which count where jobs are put together.
        alone: never put together with others.
        queued: when it was made, by the queue's clock.
        deadline: when its caller gives up, by the queue's clock.
    """

    __slots__ = ("alone", "deadline", "future", "loop", "queued", "rows", "work")

    def __init__(
        self, work: Work, *, queued: float, deadline: float, rows: int = 1, alone: bool = False
    ) -> None:
        """Make a job of the running event loop."""
        self.work = work
        self.rows = rows
        self.alone = alone
        self.queued = queued
        self.deadline = deadline
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Result] = self.loop.create_future()

    def answer(self, result: Result) -> None:
        """Hand a result to the caller, from any thread; nothing happens where nobody waits."""
        self._post(self._set_result, result)

    def refuse(self, error: BaseException) -> None:
        """Hand an error to the caller, from any thread; nothing happens where nobody waits."""
        self._post(self._set_error, error)

    def _post(self, settle: Callable[..., None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its callers are gone
            self.loop.call_soon_threadsafe(settle, outcome)

    def _set_result(self, result: Result) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def _set_error(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class JobQueue(Generic[Work, Result]):
    """Jobs in the order they came. Its length is how many wait.

    How many may wait is for the caller to say, who knows what waits elsewhere as well.
    """

    def __init__(
        self,
        *,
        limit: int = 1,
        delay: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Make an empty queue.

        Args:
            limit: jobs of so many rows in all are given out together; a larger one comes alone.
            delay: seconds that a job waits for others to join it.
            clock: tells seconds.
        """
        self._limit = limit
        self._delay = delay
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Job[Work, Result]] = deque()
        self._refuse: Refuse | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def result(self, job: Job[Work, Result]) -> Result:
        """Put a job in, and wait until it is done.

        Where the caller is cancelled, or the deadline comes, before the job is taken, it is never
        taken.

        Raises:
            RequestError: 504 at the deadline; or the job was refused.
        """
        timer = job.loop.call_later(job.deadline - self._clock(), self._expire, job)
        try:
            self._put(job)  # last of all: the thread that takes it wants Python's lock at once
            return await job.future
        except BaseException:
            self._drop(job)
            raise
        finally:
            timer.cancel()
            del job  # its future holds the error that is raised here, and that would hold the job

    def take(self) -> list[Job[Work, Result]]:
        """Wait for jobs, and take those that are to be done together; for threads.

        Returns:
            One job, or several whose rows fit into the limit; none once the queue is closed.
        """
        with self._changed:
            while not self._closed:
                group, wait = self._group(self._clock())
                if group:
                    for _ in group:
                        self._waiting.popleft()
                    if self._waiting:  # whoever was woken for these may have found others before
                        self._changed.notify()
                    return group
                self._changed.wait(wait)
        return []

    def refuse(self, refuse: Refuse) -> None:
        """Refuse what waits, and what comes from now on."""
        with self._changed:
            self._refuse = refuse
            while self._waiting:
                self._waiting.popleft().refuse(refuse())

    def accept(self) -> None:
        """Take jobs again after `refuse`; not after `close`."""
        with self._changed:
            if not self._closed:
                self._refuse = None

    def close(self, refuse: Refuse) -> None:
        """Refuse everything for good, and let the threads go."""
        with self._changed:
            self._closed = True
            self.refuse(refuse)
            self._changed.notify_all()

    def _put(self, job: Job[Work, Result]) -> None:
        with self._changed:
            if self._refuse is not None:
                raise self._refuse()
            self._waiting.append(job)
            self._changed.notify()

    def _drop(self, job: Job[Work, Result]) -> None:
        with self._changed, contextlib.suppress(ValueError):  # it has been taken
            self._waiting.remove(job)

    def _expire(self, job: Job[Work, Result]) -> None:
        """In the loop's thread."""
        self._drop(job)
        job._set_error(timed_out())  # a job and its queue are one thing

    def _group(self, now: float) -> tuple[list[Job[Work, Result]], float | None]:
        """The first jobs that go together, or for how long to wait (None: until one comes)."""
        self._drop_late(now)
        group: list[Job[Work, Result]] = []
        rows = 0
        for job in self._waiting:
            rows += job.rows
            if group and (job.alone or rows > self._limit):
                return group, None
            group.append(job)
            if job.alone or rows >= self._limit:
                return group, None
        if not group:
            return [], None
        left = group[0].queued + self._delay - now
        return (group, None) if left <= 0 else ([], left)

    def _drop_late(self, now: float) -> None:
        """The loop may be behind with its timers; what is late is not run for that."""
        while late := [job for job in islice(self._waiting, self._limit) if job.deadline <= now]:
            for job in late:
                self._waiting.remove(job)
                job.refuse(timed_out())
