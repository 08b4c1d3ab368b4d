"""Any order of admitting, preparing, cancelling, expiring, finishing, failing and opening again.

A state machine knows at each step who waits, who runs and how everybody's request has ended, and
compares a real model, with its threads and an event loop, with that.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from served import (
    PATIENCE,
    SETTINGS,
    SIGNATURE,
    Clock,
    ClockLoop,
    GatedOpener,
    GatedRunner,
    echoed,
    images,
    join_threads,
    settle,
    watch,
)

from parnet_deploy.errors import EngineError, RequestError, RunnerError
from parnet_deploy.serve.engine.inference import Answer
from parnet_deploy.serve.engine.model import ServedModel, State
from parnet_deploy.serve.recording import Recorder

TIMEOUT = 10
QUEUE = 4
LOG = logging.getLogger("parnet_deploy.serve")


class Failures(logging.Handler):
    """Tells when a failed run has been dealt with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: SimpleQueue[None] = SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("the engine failed"):
            self.seen.put(None)


class Requests(RuleBasedStateMachine):
    """What is to come of requests, and what does."""

    contexts = 1
    max_batch = 1

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.loop = ClockLoop(self.clock)
        self.unseen = watch(self.loop)
        self.failures = Failures()
        LOG.addHandler(self.failures)
        LOG.propagate = False
        self.runner = GatedRunner()
        self.runners = [self.runner]
        self.opener = GatedOpener(self.runner)
        self.recorder = Recorder(SIGNATURE)
        self.model = ServedModel(
            SIGNATURE,
            self.opener,
            replace(
                SETTINGS,
                timeout=TIMEOUT,
                stall=1e6,
                queue=QUEUE,
                contexts=self.contexts,
                max_batch=self.max_batch,
            ),
            self.recorder,
            backoff=(0,) * 1000,
            clock=self.clock,
        )
        self.model.start()
        self.opener.asked.get(timeout=PATIENCE)
        self.up = True
        self.count = 0
        self.tasks: dict[int, asyncio.Task[Answer]] = {}
        self.let_go: dict[int, asyncio.Event] = {}
        self.deadlines: dict[int, float] = {}
        self.preparing: list[int] = []
        self.queue: list[int] = []
        self.running: list[tuple[GatedRunner, list[int]]] = []
        self.ends: dict[int, object] = {}
        self.started: set[int] = set()

    # What is done

    @rule(prepared=st.booleans())
    def admit(self, prepared: bool) -> None:
        self.count += 1
        number = self.count
        self.let_go[number] = asyncio.Event()
        if prepared:
            self.let_go[number].set()
        full = len(self.preparing) + len(self.queue) >= QUEUE
        self.deadlines[number] = self.clock.now + TIMEOUT
        self.tasks[number] = self.loop.create_task(self._ask(number))
        self._turn()
        if full or not self.up:
            self.ends[number] = 503
        elif prepared:
            self.queue.append(number)
        else:
            self.preparing.append(number)
        self._follow()

    @precondition(lambda self: self.preparing)
    @rule(data=st.data())
    def prepare(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.preparing))
        self.preparing.remove(number)
        self.let_go[number].set()
        if not self.up:
            self.ends[number] = 503
        elif self.deadlines[number] <= self.clock.now:
            self.ends[number] = 504
        else:
            self.queue.append(number)
        self._turn()
        self._follow()
        self._turn()

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self._open()))
        self.tasks[number].cancel()
        for waiting in (self.preparing, self.queue):
            if number in waiting:
                waiting.remove(number)
        self.ends[number] = "cancelled"
        self._turn()
        self._follow()

    @rule(seconds=st.integers(1, TIMEOUT))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        late = [n for n in self._open() if self.deadlines[n] <= self.clock.now]
        for number in late:
            if number not in self.preparing:  # nobody looks at those before they are prepared
                self.ends[number] = 504
        self.queue = [number for number in self.queue if number not in late]
        self._turn()
        self._follow()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        runner, numbers = self._pick_run(data)
        runner.finish(numbers[0])
        self._end_of_run(numbers, {number: [float(number)] for number in numbers})
        self._follow()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        runner, numbers = self._pick_run(data)
        runner.finish(numbers[0], RunnerError("on purpose"))
        self.failures.seen.get(timeout=PATIENCE)
        if self.up:
            self.up = False
            self.ends |= dict.fromkeys(self.queue, 503)
            self.queue = []
        self._end_of_run(numbers, dict.fromkeys(numbers, 500))
        self._turn()

    @precondition(lambda self: not self.up and not self.running)
    @rule(works=st.booleans())
    def open_again(self, works: bool) -> None:
        self.reopen(works=works)

    def reopen(self, *, works: bool) -> None:
        self.opener.asked.get(timeout=PATIENCE)
        if not works:
            self.opener.give(EngineError("on purpose"))
            return
        self.runner = GatedRunner()
        self.runners.append(self.runner)
        self.opener.give(self.runner)
        join_threads("reopen")
        self.up = True

    # What holds after each step

    @invariant()
    def who_waits_is_counted(self) -> None:
        assert self.model.waiting == len(self.preparing) + len(self.queue)
        assert self.recorder.levels().in_flight == len(self._open())
        assert self.model.state is (State.READY if self.up else State.FAILED)

    @invariant()
    def every_request_ends_once_as_it_should(self) -> None:
        for number, task in self.tasks.items():
            assert task.done() == (number in self.ends), number
            if task.done():
                assert outcome(task) == self.ends[number], number

    @invariant()
    def nothing_is_run_but_what_was_to_be(self) -> None:
        runs = [number for runner in self.runners for run in numbers_of(runner) for number in run]
        assert sorted(runs) == sorted(self.started)

    def teardown(self) -> None:
        try:
            for task in self.tasks.values():
                task.cancel()
            self._turn()
            for runner, numbers in self.running:
                runner.finish(numbers[0])
            if not self.up:
                self.running = []
                self.reopen(works=True)
            assert self.model.waiting == 0
            assert self.recorder.levels().in_flight == 0
            self.model.close()
            self._turn()
            assert self.unseen == []
            assert all(runner.log.count("closed") == 1 for runner in self.runners)
        finally:
            LOG.removeHandler(self.failures)
            LOG.propagate = True
            self.loop.close()

    # Helpers

    async def _ask(self, number: int) -> Answer:
        with self.model.admit() as ticket:
            await self.let_go[number].wait()
            return await self.model.run(ticket, images(number))

    def _open(self) -> list[int]:
        """Requests that have not ended."""
        return [number for number in self.tasks if number not in self.ends]

    def _turn(self) -> None:
        self.loop.run_until_complete(settle())

    def _pick_run(self, data: st.DataObject) -> tuple[GatedRunner, list[int]]:
        index = data.draw(st.integers(0, len(self.running) - 1))
        return self.running.pop(index)

    def _end_of_run(self, numbers: list[int], ends: dict[int, Any]) -> None:
        """Wait for those of a run's callers that still wait for it."""
        for number in numbers:
            if number not in self.ends:
                self.ends[number] = ends[number]
                self.loop.run_until_complete(asyncio.wait([self.tasks[number]]))

    def _follow(self) -> None:
        """Whoever waits is run where an engine's thread is free."""
        while self.up and self.queue and len(self.running) < self.contexts:
            together = [round(number) for number in self.runner.begun()]
            assert together == self.queue[: self.max_batch]
            self.queue = self.queue[self.max_batch :]
            self.started |= set(together)
            self.running.append((self.runner, together))


def outcome(task: asyncio.Task[Answer]) -> object:
    """An answer's numbers, a refusal's status, or that it was cancelled."""
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if isinstance(error, RequestError):
        return error.status
    assert error is None, error
    return echoed(task.result())


def numbers_of(runner: GatedRunner) -> list[list[float]]:
    return [run for run in runner.log if isinstance(run, list)]


class RequestsOfTwoContexts(Requests):
    contexts = 2


class RequestsInBatches(Requests):
    max_batch = 3


class RequestsInBatchesOfTwoContexts(Requests):
    contexts = 2
    max_batch = 2


MACHINES = settings(max_examples=50, stateful_step_count=40, deadline=None)

TestRequests = Requests.TestCase
TestRequestsOfTwoContexts = RequestsOfTwoContexts.TestCase
TestRequestsInBatches = RequestsInBatches.TestCase
TestRequestsInBatchesOfTwoContexts = RequestsInBatchesOfTwoContexts.TestCase

for _case in (
    TestRequests,
    TestRequestsOfTwoContexts,
    TestRequestsInBatches,
    TestRequestsInBatchesOfTwoContexts,
):
    _case.settings = MACHINES

del _case  # or it would be collected once more
