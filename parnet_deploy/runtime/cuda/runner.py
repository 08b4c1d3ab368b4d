"""Stages on one or several GPUs as one runner; a whole engine is one stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime.base import ClosingRunner
from parnet_deploy.runtime.cuda.device import CudaDevice
from parnet_deploy.runtime.cuda.lane import Lane
from parnet_deploy.runtime.cuda.lanes import Lanes
from parnet_deploy.runtime.cuda.schedule import Step, schedule
from parnet_deploy.runtime.cuda.stage import CudaStage, Program
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.spec import Array, TensorSpec, check_feeds


class CudaRunner(ClosingRunner):
    """Runs every stage on its GPU and its own stream, as soon as its inputs are there.

    Safe to run from several threads: each takes one of the runner's contexts, and waits where none
    is free. After a failed run it gives no more answers, as the state of the GPUs is not known.
    """

    def __init__(
        self,
        stages: Sequence[CudaStage],
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        contexts: int = 1,
        open_device: Callable[[int], CudaDevice] = CudaDevice,
    ) -> None:
        """Take the GPUs, load every stage and allocate all memory.

        Args:
            stages: each after those whose outputs it reads.
            inputs: what the caller gives.
            outputs: what the caller gets.
            contexts: how many runs can be under way at once; each has memory and streams of its
                own, and all share the weights.
            open_device: takes the GPU of a number.

        Raises:
            TargetError: a GPU is not there, or not what an engine was built for.
            EngineError: the stages do not fit together, an engine is damaged, or there is too
                little memory.
            MissingDependencyError: what runs the engines is not installed.
        """
        if contexts < 1:
            raise EngineError(f"at least one context is needed, not {contexts}")
        self.inputs = inputs
        self.outputs = outputs
        self._devices: dict[int, CudaDevice] = {}
        self._programs: dict[str, Program] = {}
        lanes: list[Lane] = []
        try:
            for stage in stages:
                self._load(stage, open_device)
            steps = schedule(stages, inputs=inputs, outputs=outputs, reaches=self._reaches)
            self._batch = _common_batch(self._programs)
            for _ in range(contexts):
                lanes.append(self._lane(steps, stages))  # noqa: PERF401  # kept when a later fails
        except BaseException as exc:
            self._free(lanes)
            if isinstance(exc, RunnerError):
                raise EngineError(str(exc)) from exc
            raise
        self._lanes = Lanes(lanes)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the arrays given back are new.

        Raises:
            RunnerError: the arrays do not fit `inputs`, their batch is not one the engine takes, a
                stage failed, or the runner is closed or has failed before.
        """
        batch = self._batch_of(feeds)
        with self._lanes.lent() as lane:
            return lane.run(feeds, batch)

    def run_all(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run, and fetch what went from stage to stage as well. See `base.ShowsCuts`."""
        batch = self._batch_of(feeds)
        with self._lanes.lent() as lane:
            return lane.run_all(feeds, batch)

    def trace(self, feeds: Mapping[str, Array]) -> tuple[Span, ...]:
        """Run, and tell when every stage and copy started and ended. See `timeline.Traces`."""
        batch = self._batch_of(feeds)
        with self._lanes.lent() as lane:
            return lane.trace(feeds, batch)

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        """Run, and time all stages and cuts alone. See `timeline.TimesCompute`."""
        batch = self._batch_of(feeds)
        with self._lanes.lent() as lane:
            return lane.time_compute(feeds, batch)

    def close(self) -> None:
        """Let runs end and free everything; a second call does nothing."""
        self._free(self._lanes.take_back("it is closed"))

    def _load(self, stage: CudaStage, open_device: Callable[[int], CudaDevice]) -> None:
        if stage.device not in self._devices:
            self._devices[stage.device] = open_device(stage.device)
        device = self._devices[stage.device]
        try:
            device.make_current()
            self._programs[stage.name] = stage.load(device)
        except RunnerError as exc:
            words = f"stage '{stage.name}' on {device.name} cannot be loaded"
            raise EngineError(f"{words}: {exc}") from exc

    def _reaches(self, source: int, target: int) -> bool:
        device = self._devices[source]
        try:
            return device.reaches(self._devices[target])
        except RunnerError as exc:
            raise EngineError(f"{device.name}: {exc}") from exc

    def _lane(self, steps: Sequence[Step], stages: Sequence[CudaStage]) -> Lane:
        made = [spec for stage in stages for spec in stage.outputs]
        return Lane(
            steps,
            self._programs,
            self._devices,
            inputs=self.inputs,
            outputs=self.outputs,
            tensors={spec.name: spec for spec in (*self.inputs, *made)},
            largest=self._batch.max,
        )

    def _batch_of(self, feeds: Mapping[str, Array]) -> int:
        """How many images are fed, once the feeds are known to fit."""
        check_feeds(self.inputs, feeds)
        sizes = {int(array.shape[0]) for array in feeds.values()}
        if len(sizes) != 1:
            raise RunnerError(f"the inputs are of different batches: {sorted(sizes)}")
        size = sizes.pop()
        if not self._batch.min <= size <= self._batch.max:
            raise RunnerError(
                f"a batch of {size} was given, and the engine takes {self._batch.min} to "
                f"{self._batch.max}; build it with another --batch at export"
            )
        return size

    def _free(self, lanes: Sequence[Lane]) -> None:
        """Everything, in the reverse order of its making, once nothing runs any more."""
        for device in self._devices.values():
            device.drain()
        for lane in lanes:
            lane.release()
        self._programs.clear()  # what executes engines goes before the memory it works on
        for device in self._devices.values():
            device.close()
        self._devices.clear()


def _common_batch(programs: Mapping[str, Program]) -> BatchRange:
    """The batches that all stages take."""
    low = max(program.batch.min for program in programs.values())
    high = min(program.batch.max for program in programs.values())
    if low > high:
        ranges = ", ".join(
            f"{name} {program.batch.min} to {program.batch.max}"
            for name, program in programs.items()
        )
        raise EngineError(f"there is no batch that every stage takes: {ranges}")
    return BatchRange(min=low, opt=low, max=high)
