"""What each stage of a split engine takes alone, beside the split and the whole engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from parnet_deploy.bench.statistics import Latency, describe
from parnet_deploy.bundle import EngineBundle, EngineStage
from parnet_deploy.runtime import Runner, open_runner
from parnet_deploy.runtime.timeline import TimesCompute
from parnet_deploy.spec import Array, TensorSpec

RUNS = 30
WARM_UP = 3
UNSTEADY = 0.1
"""Coefficient of variation from which a median is told with a warning."""

SPLIT, WHOLE = "split", "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTimes:
    """Latencies in milliseconds.

    Attributes:
        stages: of each stage alone: its compute where it is on a GPU and its runner can tell that
            apart, otherwise from host memory to host memory.
        split: of the split engine, from host memory to host memory.
        whole: of the engine of the whole network, None where there was none.
    """

    stages: Mapping[str, Latency]
    split: Latency
    whole: Latency | None

    @property
    def unsteady(self) -> tuple[str, ...]:
        """Names of what varied so much that its median says little."""
        all_of_them = {**self.stages, SPLIT: self.split}
        if self.whole is not None:
            all_of_them[WHOLE] = self.whole
        return tuple(n for n, latency in all_of_them.items() if latency.variation > UNSTEADY)


def measure_stages(
    split: EngineBundle,
    whole: EngineBundle | None,
    *,
    runs: int = RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> StageTimes:
    """Time every stage alone, the split engine and the whole one, in turns and in shuffled order.

    Each runs once in every round, so that what disturbs the machine for a while disturbs all.

    Args:
        split: the split engine.
        whole: the engine of the whole network.
        runs: rounds that count, after some that do not.
        clock: seconds, never going back.

    Raises:
        EngineError: an engine does not open here.
        RunnerError: a run failed.
    """
    with contextlib.ExitStack() as opened:

        def opening(bundle: EngineBundle) -> Runner:
            runner = open_runner(bundle)
            opened.callback(runner.close)
            return runner

        images = _random(split.manifest.inputs, split.manifest.batch.opt)
        timed: dict[str, Callable[[], float]] = {}
        values = dict(images)
        for stage in split.manifest.stages:
            runner = opening(_alone(split, stage))
            feeds = {spec.name: values[spec.name] for spec in stage.inputs}
            values |= runner.run(feeds)
            timed[stage.name] = _stage_timer(runner, feeds, stage.device, clock)
        timed[SPLIT] = _timer(opening(split), images, clock)
        if whole is not None:
            timed[WHOLE] = _timer(opening(whole), images, clock)
        latencies = _in_turns(timed, runs)
    return StageTimes(
        stages={stage.name: latencies[stage.name] for stage in split.manifest.stages},
        split=latencies[SPLIT],
        whole=latencies.get(WHOLE),
    )


def _in_turns(timed: Mapping[str, Callable[[], float]], runs: int) -> dict[str, Latency]:
    order = np.random.default_rng(0)
    names = list(timed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP + runs):
        for index in order.permutation(len(names)):
            taken = timed[names[index]]()
            if turn >= WARM_UP:
                seconds[names[index]].append(1000 * taken)
    return {name: describe([latencies]) for name, latencies in seconds.items()}


def _alone(split: EngineBundle, stage: EngineStage) -> EngineBundle:
    """A stage as an engine of its own."""
    # A stripped plan's weights are found by its stage's name, which only a split engine has.
    stripped = split.manifest.target.get("weights") == "stripped"
    manifest = replace(
        split.manifest,
        split=stripped,
        stages=(stage,),
        inputs=stage.inputs,
        outputs=stage.outputs,
    )
    return replace(split, manifest=manifest)


def _stage_timer(
    runner: Runner, feeds: Mapping[str, Array], device: str, clock: Callable[[], float]
) -> Callable[[], float]:
    if device != "cpu" and isinstance(runner, TimesCompute):
        computing = runner
        return lambda: computing.time_compute(feeds)
    return _timer(runner, feeds, clock)


def _timer(
    runner: Runner, feeds: Mapping[str, Array], clock: Callable[[], float]
) -> Callable[[], float]:
    def run() -> float:
        start = clock()
        runner.run(feeds)
        return clock() - start

    return run


def _random(specs: tuple[TensorSpec, ...], batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.integers(0, 256, spec.concrete(batch)).astype(spec.dtype)
        if np.issubdtype(np.dtype(spec.dtype), np.integer)
        else rng.standard_normal(spec.concrete(batch)).astype(spec.dtype)
        for spec in specs
    }
