"""Steps put on their streams: launches, the events between them, and a CUDA graph for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.cuda.device import CudaDevice, Event, Graph, Stream
from parnet_deploy.runtime.cuda.schedule import Step


class StepError(RunnerError):
    """A run that failed; the message names the step, or the stages, and the GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A step on its GPU.

    Attributes:
        step: what it is.
        device: where.
        stream: its stream.
        enqueue: puts it there.
        recordable: whether a CUDA graph can hold it.
    """

    step: Step
    device: CudaDevice
    stream: Stream
    enqueue: Callable[[], None]
    recordable: Callable[[], bool]


@dataclass(kw_only=True, slots=True)
class Launch:
    """Steps that are launched as one, on the stream of the first.

    Attributes:
        steps: their numbers.
        waits: launches that must have ended before it starts.
        start: marks its start, where that is timed.
        end: marks its end.
        fork: lets the other steps' streams start after the first one's.
        done: marks the end of each step that others in it wait for.
        graph: what was recorded of it.
        plain: whether recording it was tried and failed.
    """

    steps: tuple[int, ...]
    waits: tuple[int, ...]
    start: Event | None
    end: Event
    fork: Event | None = None
    done: dict[int, Event] = field(default_factory=dict)
    graph: Graph | None = None
    plain: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clock:
    """A GPU's beginning, from which its times count; its stream waits for all the others."""

    device: CudaDevice
    stream: Stream
    origin: Event


class Playback:
    """A choice of a run's steps, as launches that can be played again and again.

    On the GPUs, a launch waits for the events that mark the ends of the launches before it, and a
    step in it for those of the steps before it. The host waits in `wait` only.
    """

    def __init__(
        self, works: Sequence[Work], launches: Sequence[tuple[int, ...]], *, timed: bool = False
    ) -> None:
        """Make the events.

        Args:
            works: all steps of a run.
            launches: numbers of those to play, as `schedule.launches` gives them.
            timed: whether `time` will be called.

        Raises:
            RunnerError: a GPU refuses.
        """
        self._works = works
        self._launches: list[Launch] = []
        made_in = {number: index for index, numbers in enumerate(launches) for number in numbers}
        for index, numbers in enumerate(launches):
            waits = {made_in[w] for n in numbers for w in works[n].step.waits if w in made_in}
            self._launches.append(self._launch(numbers, tuple(sorted(waits - {index})), timed))
        self._clocks = self._make_clocks() if timed else {}

    def start(self, *, recording: bool, after: Mapping[str, Event] | None = None) -> None:
        """Put everything on its streams.

        Args:
            recording: whether to record what has not been recorded yet; the first run of a batch
                may compile or allocate, which cannot be.
            after: events, by GPU, that its launches wait for.

        Raises:
            RunnerError: a step could not be started; the message names it.
        """
        for launch in self._launches:
            first = self._works[launch.steps[0]]
            with self._named(launch):
                first.device.make_current()
                for wait in launch.waits:
                    first.device.wait(first.stream, self._launches[wait].end)
                if after:
                    first.device.wait(first.stream, after[first.device.name])
                if recording:
                    self._record(launch)
                if launch.start is not None:
                    first.device.mark(launch.start, first.stream)
                if launch.graph is not None:
                    first.device.launch(launch.graph, first.stream)
                else:
                    self._enqueue(launch)
                first.device.mark(launch.end, first.stream)

    def wait(self) -> None:
        """Wait until everything that was started has ended.

        In order: a GPU that was lost is noticed before anyone waits for what it will never give.

        Raises:
            RunnerError: something failed; the message names the launch's stages and their GPU.
        """
        for launch in self._launches:
            with self._named(launch):
                self._works[launch.steps[0]].device.synchronize(launch.end)

    def time(self, *, recording: bool) -> tuple[tuple[float, float], ...]:
        """Play everything twice, and time the second time, which is queued while the first runs.

        So the GPUs' clocks do not count how long the host takes to start things. Clocks of
        different GPUs meet where one waits for the other, which is a matter of microseconds.

        Returns:
            Seconds at which each launch started and ended, in order, from a common beginning.
        """
        self.start(recording=recording)
        self._start_clocks()
        origins = {name: clock.origin for name, clock in self._clocks.items()}
        self.start(recording=False, after=origins)
        self.wait()
        return tuple(self._span(launch) for launch in self._launches)

    def drop_graphs(self) -> None:
        """Forget what was recorded: it holds for one batch only."""
        for launch in self._launches:
            launch.plain = False
            if launch.graph is not None:
                first = self._works[launch.steps[0]]
                with contextlib.suppress(RunnerError):
                    first.device.make_current()
                first.device.drop(launch.graph)
                launch.graph = None

    def _launch(self, numbers: tuple[int, ...], waits: tuple[int, ...], timed: bool) -> Launch:
        device = self._works[numbers[0]].device
        alone = len(numbers) == 1
        with _on(device):
            return Launch(
                steps=numbers,
                waits=waits,
                start=device.event(timed=True) if timed else None,
                end=device.event(timed=timed),
                fork=None if alone else device.event(),
                done={} if alone else {number: device.event() for number in numbers},
            )

    def _record(self, launch: Launch) -> None:
        """Record a launch that has stages, if that is possible; else it stays plain."""
        works = [self._works[number] for number in launch.steps]
        stages = [work for work in works if work.step.kind == "stage"]
        if launch.graph is not None or launch.plain or not stages:
            return
        launch.plain = True
        if all(work.recordable() for work in stages):
            with contextlib.suppress(RunnerError):  # what is wrong otherwise fails below, too
                device, stream = works[0].device, works[0].stream
                launch.graph = device.record(stream, lambda: self._enqueue(launch))

    def _enqueue(self, launch: Launch) -> None:
        """Put the steps on their streams, which fork from the first one's and join it again."""
        first = self._works[launch.steps[0]]
        if launch.fork is not None:
            first.device.mark(launch.fork, first.stream)
        joining = set(launch.done)
        for number in launch.steps:
            work = self._works[number]
            before = [wait for wait in work.step.waits if wait in launch.done]
            joining -= set(before)
            for wait in before:
                work.device.wait(work.stream, launch.done[wait])
            if not before and work is not first:
                work.device.wait(work.stream, launch.fork)
            try:
                work.enqueue()
            except Exception as exc:
                raise StepError(f"{work.step.words} failed: {exc}") from exc
            if number in launch.done:
                work.device.mark(launch.done[number], work.stream)
        for number in sorted(joining - {launch.steps[0]}):
            first.device.wait(first.stream, launch.done[number])

    def _make_clocks(self) -> dict[str, _Clock]:
        clocks = {}
        for launch in self._launches:
            device = self._works[launch.steps[0]].device
            if device.name not in clocks:
                with _on(device):
                    stream, origin = device.stream(), device.event(timed=True)
                clocks[device.name] = _Clock(device=device, stream=stream, origin=origin)
        return clocks

    def _start_clocks(self) -> None:
        """Mark a beginning on every GPU, when all that was started has ended."""
        first: Event | None = None
        for clock in self._clocks.values():
            with _on(clock.device):
                clock.device.make_current()
                for launch in self._launches:
                    clock.device.wait(clock.stream, launch.end)
                if first is not None:
                    clock.device.wait(clock.stream, first)
                clock.device.mark(clock.origin, clock.stream)
            first = first or clock.origin

    def _span(self, launch: Launch) -> tuple[float, float]:
        device = self._works[launch.steps[0]].device
        origin = self._clocks[device.name].origin
        with self._named(launch):
            device.make_current()
            return device.seconds(origin, launch.start), device.seconds(origin, launch.end)

    @contextlib.contextmanager
    def _named(self, launch: Launch) -> Iterator[None]:
        """Errors name the step, or else the stages of the launch, and the GPU."""
        try:
            yield
        except StepError:
            raise
        except RunnerError as exc:
            steps = [self._works[number].step for number in launch.steps]
            stages = [step for step in steps if step.kind == "stage"]
            words = (stages or steps)[0].words
            if len(stages) > 1:
                names = ", ".join(f"'{step.name}'" for step in stages)
                words = f"one of the stages {names} on cuda:{stages[0].device}"
            raise StepError(f"{words} failed: {exc}") from exc


@contextlib.contextmanager
def _on(device: CudaDevice) -> Iterator[None]:
    """Errors name the GPU."""
    try:
        yield
    except RunnerError as exc:
        raise StepError(f"{device.name}: {exc}") from exc
