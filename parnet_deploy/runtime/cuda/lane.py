"""What one run at a time needs on the GPUs: memory, streams, executions, recorded graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime.cuda.device import CudaDevice, HostMemory, Stream
from parnet_deploy.runtime.cuda.playback import Playback, StepError, Work
from parnet_deploy.runtime.cuda.schedule import HOST, Place, Step, launches
from parnet_deploy.runtime.cuda.stage import Execution, Program
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.spec import Array, TensorSpec


class Lane:
    """Runs a schedule, again and again. For one thread at a time.

    Memory is allocated once, for the largest batch. The first run of a batch is plain; the second
    one records a CUDA graph of every launch that can be recorded, and later ones replay it.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        programs: Mapping[str, Program],
        devices: Mapping[int, CudaDevice],
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        tensors: Mapping[str, TensorSpec],
        largest: int,
    ) -> None:
        """Allocate everything.

        Args:
            steps: what a run is.
            programs: every stage's.
            devices: the GPUs by their numbers.
            inputs: what the caller gives.
            outputs: what the caller gets.
            tensors: every tensor.
            largest: images of the largest batch.

        Raises:
            EngineError: there is too little memory, or a GPU or an engine refuses; the message
                names the stage and the GPU.
        """
        self._steps = steps
        self._inputs, self._outputs, self._tensors = inputs, outputs, tensors
        self._devices = devices
        self._batch = 0
        self._warm = False
        self._host: dict[str, HostMemory] = {}
        self._addresses: dict[Place, int] = {}
        self._executions: list[tuple[Step, Execution]] = []
        self._largest = largest
        self._works: list[Work] = []
        self._playbacks: dict[str, Playback] = {}
        try:
            for step in steps:
                self._works.append(self._work(step, programs))
            self._playback("answer", launches(steps, range(len(steps))))
        except BaseException:
            self.release()
            raise

    def run(self, feeds: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Run once; the arrays given back are new.

        Raises:
            StepError: it failed. The lane must not be used any more.
        """
        self._give(feeds, batch)
        self._playbacks["answer"].start(recording=self._warm)
        self._playbacks["answer"].wait()
        self._warm = True
        return {spec.name: self._result(spec) for spec in self._outputs}

    def run_all(self, feeds: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """As `run`, with every stage's outputs beside the caller's.

        Raises:
            StepError: as `run`.
            RunnerError: a value cannot be fetched.
        """
        values = self.run(feeds, batch)
        for step in self._steps:
            for number, tensor in step.writes if step.kind == "stage" else ():
                if tensor not in values:
                    spec = self._tensors[tensor]
                    values[tensor] = np.empty(spec.concrete(batch), np.dtype(spec.dtype))
                    self._devices[number].fetch(self._addresses[number, tensor], values[tensor])
        return values

    def trace(self, feeds: Mapping[str, Array], batch: int) -> tuple[Span, ...]:
        """Run, each step launched by itself, and tell when each started and ended.

        Raises:
            StepError: as `run`.
        """
        self.run(feeds, batch)
        singly = tuple((number,) for number in range(len(self._steps)))
        times = self._playback("trace", singly, timed=True).time(recording=True)
        spans = [
            Span(stage=step.name, device=f"cuda:{step.device}", start=start, end=end)
            for step, (start, end) in zip(self._steps, times, strict=True)
        ]
        return tuple(sorted(spans, key=lambda span: span.start))

    def time_compute(self, feeds: Mapping[str, Array], batch: int) -> float:
        """Run, and then all but the copies of what the caller gives and gets, timed.

        Raises:
            StepError: as `run`.
        """
        self.run(feeds, batch)
        chosen = [n for n, step in enumerate(self._steps) if not step.of_caller]
        playback = self._playback("compute", launches(self._steps, chosen), timed=True)
        times = playback.time(recording=True)
        return max(end for _, end in times) - min(start for start, _ in times)

    def release(self) -> None:
        """Let go of what was recorded and of what executes engines. Nothing may be running."""
        self._drop_graphs()
        self._playbacks.clear()
        self._works.clear()
        self._executions.clear()

    def _playback(
        self, name: str, numbers: tuple[tuple[int, ...], ...], *, timed: bool = False
    ) -> Playback:
        """A way to play the steps, made when it is first wanted."""
        if name not in self._playbacks:
            self._playbacks[name] = Playback(self._works, numbers, timed=timed)
        return self._playbacks[name]

    def _drop_graphs(self) -> None:
        for playback in self._playbacks.values():
            playback.drop_graphs()

    def _work(self, step: Step, programs: Mapping[str, Program]) -> Work:
        """A step with its memory and its stream, ready to run."""
        device = self._devices[step.device]
        try:
            for place in (*step.reads, *step.writes):
                self._allocate(place)
            stream = device.stream()
            enqueue, recordable = self._copy(step, device, stream), _always
            if step.kind == "stage":
                places = (*step.reads, *step.writes)
                addresses = {place[1]: self._addresses[place] for place in places}
                execution = programs[step.name].execution(stream, addresses)
                self._executions.append((step, execution))
                enqueue, recordable = execution.enqueue, execution.recordable
        except (RunnerError, EngineError) as exc:
            kind = type(exc) if isinstance(exc, EngineError) else EngineError
            raise kind(f"{step.words} cannot be made ready: {exc}") from exc
        return Work(step=step, device=device, stream=stream, enqueue=enqueue, recordable=recordable)

    def _allocate(self, place: Place) -> None:
        """Memory at a place, once."""
        number, tensor = place
        if place in self._addresses:
            return
        nbytes = self._tensors[tensor].nbytes(self._largest)
        if number == HOST:
            self._host[tensor] = next(iter(self._devices.values())).host_memory(nbytes)
            self._addresses[place] = self._host[tensor].address
        else:
            self._addresses[place] = self._devices[number].memory(nbytes)

    def _copy(self, step: Step, device: CudaDevice, stream: Stream) -> Callable[[], None]:
        source, target = self._addresses[step.reads[0]], self._addresses[step.writes[0]]
        spec = self._tensors[step.reads[0][1]]
        put = {"upload": device.upload, "download": device.download}.get(step.kind)
        if put is None:
            put = partial(device.send, self._devices[step.writes[0][0]])
        return lambda: put(source, target, spec.nbytes(self._batch), stream)

    def _give(self, feeds: Mapping[str, Array], batch: int) -> None:
        """Put what the caller gives where the GPUs copy it from."""
        if batch != self._batch:
            self._drop_graphs()
            self._warm = False
            for step, execution in self._executions:
                try:
                    self._devices[step.device].make_current()
                    execution.set_batch(batch)
                except RunnerError as exc:
                    raise StepError(f"{step.words} failed: {exc}") from exc
            self._batch = batch
        for spec in self._inputs:
            given = np.ascontiguousarray(feeds[spec.name])
            self._host[spec.name].array[: given.nbytes] = given.reshape(-1).view(np.uint8)

    def _result(self, spec: TensorSpec) -> Array:
        memory = self._host[spec.name].array[: spec.nbytes(self._batch)]
        shape = spec.concrete(self._batch)
        return memory.view(np.dtype(spec.dtype)).reshape(shape).copy()


def _always() -> bool:
    return True
