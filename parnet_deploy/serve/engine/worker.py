"""Threads that do what waits in a queue."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic

from parnet_deploy.serve.engine.queue import Job, JobQueue, Result, Work
from parnet_deploy.serve.engine.unanswered import internal

_log = logging.getLogger("parnet_deploy.serve")

Do = Callable[[list[Job[Work, Result]]], None]
"""Does jobs, and answers or refuses every one of them."""


class Workers(Generic[Work, Result]):
    """A fixed number of threads that take jobs until their queue is closed."""

    def __init__(
        self,
        queue: JobQueue[Work, Result],
        do: Do[Work, Result],
        *,
        count: int,
        name: str,
    ) -> None:
        """Make the threads; `start` starts them.

        Args:
            queue: where jobs are.
            do: does them; whatever it raises, the jobs' callers get an answer.
            count: how many threads.
            name: what they are called.
        """
        self._queue = queue
        self._do = do
        # Daemons: a run that never ends must not keep a process from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Let them begin; once."""
        for thread in self._threads:
            thread.start()

    def join(self, patience: float) -> bool:
        """Wait until all have ended, once their queue is closed, for at most so many seconds.

        Returns:
            Whether they have.
        """
        end = time.monotonic() + patience
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while jobs := self._queue.take():
            try:
                self._do(jobs)
            except BaseException:  # noqa: BLE001  # the thread must live, and nobody may wait for ever
                _log.exception("a request could not be answered")
                for job in jobs:
                    job.refuse(internal())
            finally:
                del jobs  # arrays are not kept while there is nothing to do
