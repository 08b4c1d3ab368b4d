"""Stages, each with a runner of its own, as one runner."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock

from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.base import ClosingRunner, Runner
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.spec import Array, TensorSpec, check_feeds

Values = dict[str, Array]
RunStage = Callable[["StageRunner", Mapping[str, Array]], Values]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRunner:
    """A stage's name, its device, and what runs it."""

    name: str
    device: str
    runner: Runner


class SplitRunner(ClosingRunner):
    """Runs every stage as soon as its inputs are there, side by side with the others.

    Safe to run from several threads when the stages' runners are. A run that failed leaves nothing
    behind: the next one starts anew.
    """

    def __init__(
        self,
        stages: Sequence[StageRunner],
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Join stages.

        Args:
            stages: each after those whose outputs it reads; they are closed with this runner.
            inputs: what the caller gives.
            outputs: what the caller gets.

        Raises:
            RunnerError: there is no stage, a stage reads, or the caller wants, what nobody before
                gives, or two give the same.
        """
        self.inputs = inputs
        self.outputs = outputs
        self._stages = tuple(stages)
        _check_plan(self._stages, inputs, outputs)
        self._closing = Lock()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            max_workers=len(self._stages), thread_name_prefix="stage"
        )

    def run(self, feeds: Mapping[str, Array]) -> Values:
        """Run all stages. Returns after every one has ended, also when one of them failed.

        Raises:
            RunnerError: the arrays do not fit `inputs`, the runner is closed, or a stage failed;
                the message names the stage and its device.
        """
        values = self.run_all(feeds)
        return {spec.name: values[spec.name] for spec in self.outputs}

    def run_all(self, feeds: Mapping[str, Array]) -> Values:
        """As `run`, but with every value that crossed a cut beside the outputs."""
        return self._run_all(feeds, _run_stage)

    def trace(self, feeds: Mapping[str, Array]) -> tuple[Span, ...]:
        """Run once, and tell when each stage worked. See `Traces.trace`."""
        spans: list[Span] = []  # appending is atomic
        begin = time.perf_counter()

        def timed(stage: StageRunner, values: Mapping[str, Array]) -> Values:
            start = time.perf_counter()
            results = _run_stage(stage, values)
            end = time.perf_counter()
            spans.append(
                Span(stage=stage.name, device=stage.device, start=start - begin, end=end - begin)
            )
            return results

        self._run_all(feeds, timed)
        return tuple(sorted(spans, key=lambda span: span.start))

    def close(self) -> None:
        """Let running stages end and close every stage; a second call does nothing."""
        with self._closing:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.shutdown(wait=True)
        with contextlib.ExitStack() as closing:  # all of them, also when one fails to close
            for stage in self._stages:
                closing.callback(stage.runner.close)

    def _run_all(self, feeds: Mapping[str, Array], run: RunStage) -> Values:
        check_feeds(self.inputs, feeds)
        futures = self._submit(dict(feeds), run)
        wait(futures)
        values: Values = {}
        for future in futures:  # in order: the first failure is a cause, not a consequence
            values |= future.result()
        return values

    def _submit(self, feeds: Mapping[str, Array], run: RunStage) -> list[Future[Values]]:
        """Hand every stage to the pool.

        Producers are submitted before their consumers, and the pool starts work in that order: the
        oldest work that has not ended waits only for work that has. So nobody waits for ever,
        however many threads run at once. The lock keeps `close` from coming in between.
        """
        made: dict[str, Future[Values]] = {}
        futures = []
        with self._closing:
            if self._pool is None:
                raise RunnerError("this runner is closed; open it again")
            for stage in self._stages:
                needed = {
                    spec.name: made[spec.name] for spec in stage.runner.inputs if spec.name in made
                }
                future = self._pool.submit(_wait_and_run, run, stage, feeds, needed)
                made |= {spec.name: future for spec in stage.runner.outputs}
                futures.append(future)
        return futures


def _check_plan(
    stages: Sequence[StageRunner],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    if not stages:
        raise RunnerError("there is no stage to run")
    given = {spec.name: spec for spec in inputs}
    for stage in stages:
        for spec in stage.runner.inputs:
            if given.get(spec.name) != spec:
                raise RunnerError(
                    f"stage '{stage.name}' reads {_describe(spec)}, and what is there is "
                    f"{_describe(given.get(spec.name))}"
                )
        made = [spec.name for spec in stage.runner.outputs]
        if twice := [name for name in made if name in given or made.count(name) > 1]:
            raise RunnerError(f"stage '{stage.name}' gives {twice}, which is given already")
        given |= {spec.name: spec for spec in stage.runner.outputs}
    for spec in outputs:
        there = given.get(spec.name)
        if there != spec:
            raise RunnerError(
                f"{_describe(spec)} is wanted, and what is there is {_describe(there)}"
            )


def _describe(spec: TensorSpec | None) -> str:
    if spec is None:
        return "nothing of that name"
    return f"'{spec.name}', {spec.dtype}[{', '.join(map(str, spec.shape))}]"


def _wait_and_run(
    run: RunStage,
    stage: StageRunner,
    feeds: Mapping[str, Array],
    needed: Mapping[str, Future[Values]],
) -> Values:
    names = [spec.name for spec in stage.runner.inputs]
    return run(
        stage,
        {name: needed[name].result()[name] if name in needed else feeds[name] for name in names},
    )


def _run_stage(stage: StageRunner, values: Mapping[str, Array]) -> Values:
    try:
        results = stage.runner.run(values)
        check_feeds(stage.runner.outputs, results)
    except Exception as exc:
        raise RunnerError(f"stage '{stage.name}' on {stage.device} failed: {exc}") from exc
    return results
