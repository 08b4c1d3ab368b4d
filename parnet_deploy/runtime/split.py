"""Stages, each with a runner of its own, as one runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from parnet_deploy.errors import ParnetDeployError, RunnerError
from parnet_deploy.runtime.base import ClosingRunner, Runner
from parnet_deploy.spec import Array, TensorSpec, check_feeds


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRunner:
    """A stage's name, its device, and what runs it."""

    name: str
    device: str
    runner: Runner


class SplitRunner(ClosingRunner):
    """Runs every stage as soon as its inputs are there, side by side with the others.

    Safe to run from several threads when the stages' runners are.
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
            RunnerError: a stage reads, or the caller wants, what nobody before gives.
        """
        self.inputs = inputs
        self.outputs = outputs
        self._stages = tuple(stages)
        _check_plan(self._stages, inputs, outputs)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            max_workers=len(self._stages), thread_name_prefix="stage"
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run all stages. Returns after every one has ended, also when one of them failed.

        Raises:
            RunnerError: the arrays do not fit `inputs`, the runner is closed, or a stage failed;
                the message names the stage and its device.
        """
        return {
            name: value
            for name, value in self.run_all(feeds).items()
            if name in {spec.name for spec in self.outputs}
        }

    def run_all(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, but with every value that crossed a cut beside the outputs."""
        check_feeds(self.inputs, feeds)
        if self._pool is None:
            raise RunnerError("this runner is closed; open it again")
        # Producers are submitted before their consumers, and the pool starts work in that order:
        # whoever waits, waits for work that is running or done.
        made: dict[str, Future[dict[str, Array]]] = {}
        futures = []
        for stage in self._stages:
            future = self._pool.submit(_run_stage, stage, dict(feeds), dict(made))
            made |= {spec.name: future for spec in stage.runner.outputs}
            futures.append(future)
        wait(futures)
        values: dict[str, Array] = {}
        for future in futures:  # in order: the first failure is a cause, not a consequence
            values |= future.result()
        return values

    def close(self) -> None:
        """Close every stage; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
        for stage in self._stages:
            stage.runner.close()


def _check_plan(
    stages: Sequence[StageRunner],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    given = {spec.name: spec for spec in inputs}
    for stage in stages:
        for spec in stage.runner.inputs:
            if given.get(spec.name) != spec:
                raise RunnerError(
                    f"stage '{stage.name}' reads {spec}, and what is there is "
                    f"{given.get(spec.name, 'nothing of that name')}"
                )
        given |= {spec.name: spec for spec in stage.runner.outputs}
    if missing := [spec.name for spec in outputs if given.get(spec.name) != spec]:
        raise RunnerError(f"no stage gives {missing}")


def _run_stage(
    stage: StageRunner,
    feeds: Mapping[str, Array],
    made: Mapping[str, Future[dict[str, Array]]],
) -> dict[str, Array]:
    names = [spec.name for spec in stage.runner.inputs]
    values = {name: made[name].result()[name] if name in made else feeds[name] for name in names}
    try:
        return stage.runner.run(values)
    except ParnetDeployError as exc:
        raise RunnerError(f"stage '{stage.name}' on {stage.device}: {exc}") from exc
