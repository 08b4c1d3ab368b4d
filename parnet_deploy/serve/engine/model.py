"""A model that answers: an engine, what waits for it, and the threads in between."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

from parnet_deploy.errors import RunnerError, UsageError
from parnet_deploy.runtime.base import Runner
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.serve.engine.batching import Arrays, rows_of
from parnet_deploy.serve.engine.inference import Answer, Inference, Task
from parnet_deploy.serve.engine.queue import Job, JobQueue
from parnet_deploy.serve.engine.restarting import BACKOFF, Engine
from parnet_deploy.serve.engine.ticket import Ticket
from parnet_deploy.serve.engine.unanswered import (
    engine_down,
    invalid,
    not_ready,
    queue_full,
    stopped,
    timed_out,
)
from parnet_deploy.serve.engine.warming import warm_up
from parnet_deploy.serve.engine.worker import Workers
from parnet_deploy.serve.recording import Levels, Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import check_feeds

Made = TypeVar("Made")

MOST_DECODERS = 4
"""Threads that decode, where nobody says how many."""

CLOSING = 5.0
"""Seconds that `ServedModel.close` waits for a run that is under way, and for an opening."""


class State(enum.StrEnum):
    """What a served model is at."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


_MESSAGES = {
    State.STARTING: "the engine is being started",
    State.READY: "",
    State.FAILED: "the engine failed and is being started again",
    State.DRAINING: "the server is shutting down",
    State.STOPPED: "the server has stopped",
}
_GIVEN_UP = "the engine failed and could not be started again"
_STALLED = "the engine does not answer"


class ServedModel:
    """An engine that answers requests, until it is drained and closed.

    `admit`, `prepare`, `run` and `drained` are for the event loop's thread, one loop at a time.
    `drain`, `ready`, `live` and `message` are for any thread and for signal handlers.

    Attributes:
        signature: what it reads and gives.
        settings: its limits.
    """

    def __init__(
        self,
        signature: Signature,
        opener: Callable[[], Runner],
        settings: ServeSettings,
        recorder: Recorder,
        *,
        backoff: Sequence[float] = BACKOFF,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing is opened yet; `start` does it.

        Args:
            signature: what the runner reads and gives.
            opener: opens a runner that takes `settings.contexts` runs at once.
            settings: limits.
            recorder: told of the engine's runs.
            backoff: seconds before each try to open a failed engine again.
            clock: tells seconds.

        Raises:
            UsageError: the settings ask for batches that the engine does not take, or for a delay
                without batches.
        """
        _check_batching(signature, settings)
        self.signature = signature
        self.settings = settings
        self._clock = clock
        # Each is set once and never taken back, so that a signal may come between any two steps.
        self._started = self._draining = self._stopped = False
        self._preparing = 0
        self._open = 0
        self._held_since: float | None = None
        self._emptied: list[asyncio.Future[None]] = []
        # Any number of images: what is fewer than the engine takes is filled up.
        self._inputs = tuple(replace(s, shape=("N", *s.shape[1:])) for s in signature.inputs)
        self._queue: JobQueue[Task, Answer] = JobQueue(
            limit=settings.max_batch, delay=settings.max_delay, clock=clock
        )
        self._decoding: JobQueue[Callable[[], object], object] = JobQueue(clock=clock)
        self._engine = Engine(
            opener,
            partial(warm_up, signature=signature, settings=settings),
            down=partial(self._queue.refuse, engine_down),
            up=self._queue.accept,
            backoff=backoff,
            clock=clock,
        )
        self._inference = Inference(self._engine, signature.batch, recorder, clock)
        self._runners = Workers(
            self._queue,
            self._inference,
            count=settings.contexts,
            name="engine",
        )
        self._decoders = Workers(
            self._decoding,
            _do,
            count=settings.decode_threads or min(MOST_DECODERS, usable_cores()),
            name="decode",
        )
        recorder.watch(self._levels)

    @property
    def state(self) -> State:
        """What it is at."""
        if self._stopped:
            return State.STOPPED
        if self._draining:
            return State.DRAINING
        if not self._started:
            return State.STARTING
        return State.READY if self._engine.is_open else State.FAILED

    @property
    def ready(self) -> bool:
        """Whether requests are let in."""
        return self.state is State.READY and not self._stalled()

    @property
    def live(self) -> bool:
        """Whether it may still become well by itself; if not, restart the process."""
        opening = self._engine.opening_for() > self.settings.stall
        return not (self._engine.given_up or opening or self._stalled())

    @property
    def message(self) -> str:
        """Why it is not ready, for clients; empty where it is."""
        state = self.state
        if state is State.FAILED and self._engine.given_up:
            return _GIVEN_UP
        if state is State.READY and self._stalled():
            return _STALLED
        return _MESSAGES[state]

    @property
    def is_idle(self) -> bool:
        """Whether nobody is in, and a run of one image would not hold the event loop up."""
        return not self._open and self._runs_at_once(1)

    @property
    def waiting(self) -> int:
        """Requests that wait for the engine, or are being prepared for it."""
        return self._preparing + len(self._queue)

    def holding_for(self) -> float:
        """Seconds for which a run has held the event loop up; 0 where none does. For any thread."""
        since = self._held_since
        return 0.0 if since is None else self._clock() - since

    def start(self) -> None:
        """Open the engine, warm it up and start the threads; returns when it is ready.

        Raises:
            EngineError: it cannot be opened, or fails its first runs.
            ParnetDeployError: as the opener.
        """
        try:
            self._engine.open()
        except BaseException:
            self._stopped = True
            raise
        self._runners.start()
        self._decoders.start()
        self._started = True

    def admit(self) -> Ticket:
        """Let a request in. It is in until the block of this context manager ends.

        Raises:
            RequestError: 503; it is not ready, or as many requests wait as may.
        """
        self.check()
        self._preparing += 1
        self._open += 1
        return Ticket(timeout=self.settings.timeout, clock=self._clock, leave=self._left)

    def check(self) -> None:
        """Refuse as `admit` would at this moment.

        Raises:
            RequestError: 503, as `admit` raises it.
        """
        if not self.ready:
            raise not_ready(self.message)
        if self.waiting >= self.settings.queue:
            raise queue_full(self.settings.queue)

    async def prepare(self, ticket: Ticket, work: Callable[[], Made]) -> Made:
        """Do something on a thread for decoding.

        Raises:
            RequestError: 504 at the deadline; work that has not begun by then is never done.
            Exception: whatever the work raises.
        """
        found = await self._decoding.result(
            Job(work, queued=self._clock(), deadline=ticket.deadline)
        )
        return cast("Made", found)  # what the work gave: the queue holds work of every kind

    async def run(
        self, ticket: Ticket, feeds: Arrays, *, trace: bool = False, lone: bool = False
    ) -> Answer:
        """Run the engine.

        Args:
            ticket: of a request that was let in.
            feeds: by name, as the signature says, of 1 to `batch.max` images.
            trace: run a second time to tell when each stage works, where the runner can.
            lone: no other request is known of, so that a short run may hold the event loop up.

        Raises:
            RequestError: 400, the arrays do not fit; 503, the engine failed before it was asked;
                504 at the deadline, and a request that waits by then is never run; 500, the engine
                failed.
        """
        if lone and not trace and (answer := self.run_at_once(ticket, feeds)) is not None:
            return answer
        rows = self._check(feeds)
        now = self._clock()
        task = Task(feeds=feeds, rows=rows, prepare=now - ticket.began, trace=trace)
        self._prepared(ticket)  # from here on the queue's length counts it
        return await self._queue.result(
            Job(task, queued=now, deadline=ticket.deadline, rows=rows, alone=trace)
        )

    def run_at_once(self, ticket: Ticket, feeds: Arrays) -> Answer | None:
        """Run the engine in this thread, the event loop's, for a request that is lone.

        To wake another, and to be woken by it, takes longer than all else that is done here.

        Args:
            ticket: of a request that was let in.
            feeds: as of `run`.

        Returns:
            What it gave; None where the engine is busy, or would hold the event loop up.

        Raises:
            RequestError: as `run`.
        """
        rows = self._check(feeds)
        if not (self._open == 1 and self._runs_at_once(rows)):
            return None
        queued = self._clock()
        task = Task(feeds=feeds, rows=rows, prepare=queued - ticket.began, trace=False)
        self._prepared(ticket)
        if self._clock() >= ticket.deadline:
            raise timed_out()
        self._held_since = self._clock()
        try:
            (answer,) = self._inference.run([task], [queued])
        finally:
            self._held_since = None
        if self._clock() >= ticket.deadline:
            raise timed_out()
        return answer

    def drain(self) -> None:
        """Let nobody in any more; who is in is answered."""
        self._draining = True

    async def drained(self) -> None:
        """Wait until nobody is in."""
        while self._open:
            emptied = asyncio.get_running_loop().create_future()
            self._emptied.append(emptied)
            await emptied

    def close(self) -> bool:
        """Refuse what waits, stop the threads and free the engine; a second call only looks again.

        A run that is under way is waited for, but not for ever.

        Returns:
            Whether everything has ended. If not, a run, an opening or a decoder is still at work in
            native code, under which the interpreter must not be taken down: end the process at
            once (`os._exit`).
        """
        self._stopped = True
        self._queue.close(stopped)
        self._decoding.close(stopped)
        ended = (
            self._runners.join(CLOSING),
            self._decoders.join(CLOSING),
            self._engine.close(CLOSING),
        )
        return all(ended)

    def _runs_at_once(self, rows: int) -> bool:
        """Whether so many images are run sooner than a thread could be woken."""
        is_short = self._inference.expected(rows) < self.settings.inline_below
        return is_short and self._engine.is_idle and not self.settings.max_delay

    def _stalled(self) -> bool:
        return self._engine.running_for() > self.settings.stall

    def _levels(self) -> Levels:
        return Levels(
            in_flight=self._open,
            waiting=self.waiting,
            ready=self.ready,
            engine_failures=self._engine.failures,
        )

    def _prepared(self, ticket: Ticket) -> None:
        if ticket.preparing:
            ticket.preparing = False
            self._preparing -= 1

    def _left(self, ticket: Ticket) -> None:
        self._prepared(ticket)
        ticket.open = False
        self._open -= 1
        if not self._open:
            emptied, self._emptied = self._emptied, []
            for future in emptied:
                if not future.done():
                    future.set_result(None)

    def _check(self, feeds: Arrays) -> int:
        """How many images are fed, once they are known to fit: what does not would break a run."""
        try:
            check_feeds(self._inputs, feeds)
            rows = rows_of(feeds)
        except RunnerError as exc:
            raise invalid(str(exc)) from exc
        if not 1 <= rows <= self.signature.batch.max:
            raise invalid(f"{rows} images are given, and 1 to {self.signature.batch.max} are taken")
        return rows


def _check_batching(signature: Signature, settings: ServeSettings) -> None:
    if settings.max_batch > max(1, signature.batch.max):
        raise UsageError(
            f"--max-batch is at most {signature.batch.max}, which is what the engine of "
            f"'{signature.name}' takes, not {settings.max_batch}; build one with a larger batch, "
            "or ask for less"
        )
    if settings.max_delay and settings.max_batch == 1:
        raise UsageError(
            f"--max-delay is {settings.max_delay}, and with --max-batch 1 there is nothing to "
            "wait for; give --max-batch, too"
        )


def _do(jobs: list[Job[Callable[[], object], object]]) -> None:
    for job in jobs:
        try:
            job.answer(job.work())
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is the caller's
            job.refuse(exc)
