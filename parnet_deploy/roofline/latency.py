"""What a placement is expected to take: stages on devices, what crosses between, and when.

A run begins with the images on their way to every device that reads them. A stage starts as soon
as everything that it reads is on its device. Stages side by side on one device share it: each
keeps a share of the device busy while it runs alone, and where the shares add up to more than the
whole, all of them slow down alike. A value goes to every other device that needs it once, as soon
as it is made. The run ends when what the caller wants is in host memory.

So a run takes no less than its longest path, and no less than the busiest device's work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parnet_deploy.errors import UsageError
from parnet_deploy.roofline.devices import Device, between

HOST = "host"


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a stage is on a device.

    Attributes:
        seconds: how long it takes alone.
        share: how much of the device it keeps busy meanwhile, above 0 and up to 1.
    """

    seconds: float
    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a negative time, or a share that is none.
        """
        if not (math.isfinite(self.seconds) and self.seconds >= 0 and 0 < self.share <= 1):
            raise UsageError(
                f"a stage takes 0 seconds or more and a share of a device above 0 and up to 1, "
                f"not {self.seconds} and {self.share}"
            )

    @property
    def work(self) -> float:
        """Seconds of the whole device."""
        return self.seconds * self.share


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A stage, as far as its timing goes.

    Attributes:
        name: the stage's.
        reads: names of the values that it needs.
        gives: names of the values that it makes.
        loads: what it is on each device that it may run on.
    """

    name: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    loads: Mapping[str, Load]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Everything that a placement is chosen for.

    Attributes:
        tasks: the stages, each after those whose values it reads.
        sizes: bytes of every value.
        inputs: values that are in host memory when a run begins.
        outputs: values that are wanted there.
        devices: figures of each device, by its name.
    """

    tasks: tuple[Task, ...]
    sizes: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    devices: Mapping[str, Device]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """When a stage is expected to run, in seconds after the run began."""

    stage: str
    device: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """A copy of a value, in seconds after the run began; ``host`` is host memory."""

    value: str
    source: str
    target: str
    bytes: int
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """What a run is expected to be.

    Attributes:
        latency: seconds from the images in host memory to the answer there.
        turns: every stage, in the order of their ends.
        transfers: every copy between two memories, in the order in which they start.
    """

    latency: float
    turns: tuple[Turn, ...]
    transfers: tuple[Transfer, ...]


def simulate(work: Work, placement: Mapping[str, str]) -> Schedule:
    """Play a run through.

    Args:
        work: stages, sizes and devices.
        placement: a device for every stage.

    Raises:
        UsageError: a stage has no device, or one that it has no load on.
    """
    return _Run(work, placement).play()


def lower_bound(work: Work, placement: Mapping[str, str]) -> float:
    """What a run takes at least: the busiest device's work, or the longest path without copies."""
    busy = dict.fromkeys(placement.values(), 0.0)
    done = dict.fromkeys(work.inputs, 0.0)
    for task in work.tasks:
        load = task.loads[placement[task.name]]
        busy[placement[task.name]] += load.work
        end = max((done[value] for value in task.reads), default=0.0) + load.seconds
        done |= dict.fromkeys(task.gives, end)
    return max(*busy.values(), *(done[value] for value in work.outputs))


class _Run:
    """One run: the values that have arrived, and the stages that are at it."""

    def __init__(self, work: Work, placement: Mapping[str, str]) -> None:
        self.work = work
        self.placement = placement
        for task in work.tasks:
            if placement.get(task.name) not in task.loads:
                raise UsageError(
                    f"stage '{task.name}' is placed on {placement.get(task.name) or 'no device'}, "
                    f"and can run on {', '.join(task.loads)}"
                )
        self.readers: dict[str, list[str]] = {}
        for task in work.tasks:
            for value in task.reads:
                self.readers.setdefault(value, []).append(placement[task.name])
        self.arrived: dict[tuple[str, str], float] = {}
        self.transfers: list[Transfer] = []
        self.turns: list[Turn] = []

    def play(self) -> Schedule:
        for value in self.work.inputs:
            self._spread(value, HOST, 0.0)
        waiting = list(self.work.tasks)
        running: dict[str, float] = {}  # seconds that are left, were the stage alone
        started: dict[str, float] = {}
        tasks = {task.name: task for task in self.work.tasks}
        now = 0.0
        while waiting or running:
            for task in [task for task in waiting if self._ready(task) <= now]:
                waiting.remove(task)
                running[task.name] = task.loads[self.placement[task.name]].seconds
                started[task.name] = now
            speeds = self._speeds([tasks[name] for name in running])
            ends = {name: now + left / speeds[name] for name, left in running.items()}
            nexts = [self._ready(task) for task in waiting]
            then = min([*ends.values(), *nexts])
            if math.isinf(then):
                raise UsageError(
                    f"stage '{waiting[0].name}' reads what no stage before it gives: "
                    f"{', '.join(waiting[0].reads)}"
                )
            for name, end in ends.items():
                if end <= then:
                    del running[name]
                    self._finish(tasks[name], started[name], end)
                else:
                    running[name] -= (then - now) * speeds[name]
            now = then
        self.transfers.sort(key=lambda transfer: (transfer.start, transfer.end, transfer.value))
        latency = max(self.arrived[value, HOST] for value in self.work.outputs)
        return Schedule(latency=latency, turns=tuple(self.turns), transfers=tuple(self.transfers))

    def _ready(self, task: Task) -> float:
        device = self.placement[task.name]
        return max((self.arrived.get((v, device), math.inf) for v in task.reads), default=0.0)

    def _speeds(self, tasks: Sequence[Task]) -> dict[str, float]:
        busy: dict[str, float] = {}
        for task in tasks:
            device = self.placement[task.name]
            busy[device] = busy.get(device, 0.0) + task.loads[device].share
        return {task.name: 1 / max(1.0, busy[self.placement[task.name]]) for task in tasks}

    def _finish(self, task: Task, start: float, end: float) -> None:
        device = self.placement[task.name]
        self.turns.append(Turn(stage=task.name, device=device, start=start, end=end))
        for value in task.gives:
            self.arrived[value, device] = end
            self._spread(value, device, end)

    def _spread(self, value: str, source: str, now: float) -> None:
        """Send a value to wherever it is read, and to the host where it is wanted there."""
        targets = [*self.readers.get(value, ()), *[HOST] * (value in self.work.outputs)]
        for target in dict.fromkeys(targets):
            if target == source:
                continue
            seconds = self._seconds(source, target, self.work.sizes[value])
            self.arrived[value, target] = now + seconds
            if seconds > 0:  # a CPU reads host memory where it is
                self.transfers.append(
                    Transfer(
                        value=value,
                        source=source,
                        target=target,
                        bytes=self.work.sizes[value],
                        start=now,
                        end=now + seconds,
                    )
                )

    def _seconds(self, source: str, target: str, nbytes: int) -> float:
        devices = self.work.devices
        if source == HOST:
            return devices[target].host.seconds(nbytes)
        if target == HOST:
            return devices[source].host.seconds(nbytes)
        return between(devices[source], devices[target]).seconds(nbytes)
