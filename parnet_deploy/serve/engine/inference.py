"""Requests run on an engine: what its threads do, and the event loop's where that is sooner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.base import Runner
from parnet_deploy.runtime.timeline import Span, Traces
from parnet_deploy.serve.engine.batching import Arrays, gather, rows_of, split
from parnet_deploy.serve.engine.queue import Job
from parnet_deploy.serve.engine.restarting import Engine
from parnet_deploy.serve.engine.unanswered import CountedError, not_finite
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.spec import Array

_NEWEST = 0.125
"""What the newest run counts for in what the next is expected to take."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What the engine gave for one request.

    Attributes:
        outputs: by name, a row for each of the request's images.
        prepare: seconds from admission to the engine's queue.
        queue: seconds in it.
        infer: seconds of the engine's run.
        spans: when each stage of a second run worked, where that was wanted and can be told.
    """

    outputs: Arrays
    prepare: float
    queue: float
    infer: float
    spans: tuple[Span, ...] = ()

    def checked(self) -> Self:
        """The same, once its values are known to be numbers.

        Raises:
            RequestError: 500; one is not finite. The engine goes on: other images may be well.
        """
        if not all(map(_is_finite, self.outputs.values())):
            raise not_finite()
        return self


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Task:
    """What the engine is asked for.

    Attributes:
        feeds: by name.
        rows: how many images they are of.
        prepare: seconds from admission to the engine's queue.
        trace: whether each stage's times are wanted, too.
    """

    feeds: Arrays
    rows: int
    prepare: float
    trace: bool


class Inference:
    """Runs jobs on an engine. Safe to call from several threads."""

    def __init__(
        self, engine: Engine, batch: BatchRange, recorder: Recorder, clock: Callable[[], float]
    ) -> None:
        """Run on this engine, which takes batches of these sizes."""
        self._engine = engine
        self._batch = batch
        self._recorder = recorder
        self._clock = clock
        self._expected: dict[int, float] = {}

    def expected(self, rows: int) -> float:
        """Seconds that a run of so many images may take; infinity before the first such run."""
        return self._expected.get(max(rows, self._batch.min), math.inf)

    def __call__(self, jobs: list[Job[Task, Answer]]) -> None:
        """Run jobs as one batch, and answer or refuse each of them."""
        try:
            answers = self.run([job.work for job in jobs], [job.queued for job in jobs])
        except CountedError as exc:
            for job in jobs:
                job.refuse(exc.again())
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer(answer)

    def run(self, tasks: Sequence[Task], queued: Sequence[float]) -> list[Answer]:
        """Run tasks as one batch, in the thread that asks.

        Args:
            tasks: in order; the first says whether stages are traced.
            queued: since when each has waited.

        Raises:
            RequestError: 503 where the engine is down; 500 where it failed.
        """
        counts = [task.rows for task in tasks]
        rows = max(sum(counts), self._batch.min)
        feeds = gather([task.feeds for task in tasks], rows - sum(counts))
        begun = self._clock()
        outputs, infer, spans = self._engine.use(
            partial(self._run, feeds=feeds, rows=rows, trace=tasks[0].trace)
        )
        before = self._expected.get(rows, infer)
        self._expected[rows] = before + _NEWEST * (infer - before)
        self._recorder.ran(rows, infer)
        parts = split(outputs, counts)
        return [
            Answer(
                outputs=part, prepare=task.prepare, queue=begun - since, infer=infer, spans=spans
            )
            for task, since, part in zip(tasks, queued, parts, strict=True)
        ]

    def _run(
        self, runner: Runner, *, feeds: Arrays, rows: int, trace: bool
    ) -> tuple[Arrays, float, tuple[Span, ...]]:
        begun = self._clock()
        outputs = runner.run(feeds)
        infer = self._clock() - begun
        if (found := rows_of(outputs)) != rows:
            raise RunnerError(
                f"{found} rows came back for {rows} images; the engine is not the one that its "
                "signature describes"
            )
        spans = runner.trace(feeds) if trace and isinstance(runner, Traces) else ()
        return outputs, infer, spans


def _is_finite(array: Array) -> bool:
    """Whether all values are. Where the sum of their squares is, they are: that is known sooner."""
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())
