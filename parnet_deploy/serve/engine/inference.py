"""Requests run on an engine: what its threads do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.base import Runner
from parnet_deploy.runtime.timeline import Span, Traces
from parnet_deploy.serve.engine.batching import Arrays, gather, rows_of, split
from parnet_deploy.serve.engine.queue import Job
from parnet_deploy.serve.engine.restarting import Engine
from parnet_deploy.serve.engine.unanswered import CountedError
from parnet_deploy.serve.recording import Recorder


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Task:
    """What the engine is asked for."""

    feeds: Arrays
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

    def __call__(self, jobs: list[Job[Task, Answer]]) -> None:
        """Run jobs as one batch, and answer or refuse each of them."""
        rows = [job.rows for job in jobs]
        feeds = gather([job.work.feeds for job in jobs], self._batch)
        begun = self._clock()
        try:
            outputs, infer, spans = self._engine.use(
                partial(self._run, feeds=feeds, trace=jobs[0].work.trace)
            )
        except CountedError as exc:
            for job in jobs:
                job.refuse(exc.again())
            return
        self._recorder.ran(rows_of(feeds), infer)
        for job, part in zip(jobs, split(outputs, rows), strict=True):
            job.answer(
                Answer(
                    outputs=part,
                    prepare=job.work.prepare,
                    queue=begun - job.queued,
                    infer=infer,
                    spans=spans,
                )
            )

    def _run(
        self, runner: Runner, *, feeds: Arrays, trace: bool
    ) -> tuple[Arrays, float, tuple[Span, ...]]:
        begun = self._clock()
        outputs = runner.run(feeds)
        infer = self._clock() - begun
        if rows_of(outputs) != rows_of(feeds):
            raise RunnerError(
                f"{rows_of(outputs)} rows came back for {rows_of(feeds)} images; the engine is "
                "not the one that its signature describes"
            )
        spans = runner.trace(feeds) if trace and isinstance(runner, Traces) else ()
        return outputs, infer, spans
