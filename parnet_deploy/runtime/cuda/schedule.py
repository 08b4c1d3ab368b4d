"""What GPUs do in one run, in which order, and what is launched as one: as data.

A *step* is a copy or a stage. It runs on a GPU, on a stream of its own, and waits for the steps
that make what it reads and for nothing else. A *place* is a tensor on a GPU or on the host. Between
stages on one GPU a tensor stays at its place; for another GPU it is copied once, straight there or
through page-locked memory of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.cuda.stage import CudaStage
from parnet_deploy.spec import TensorSpec

HOST = -1
"""Where the caller's arrays are; GPUs are numbered from 0."""

Place = tuple[int, str]
"""A GPU's number or `HOST`, and a tensor's name."""

Reaches = Callable[[int, int], bool]
"""Whether copies go straight from one GPU to another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing that a GPU does in a run.

    Attributes:
        name: the stage's name, ``upload`` and ``download`` for what the caller gives and gets, or
            ``copy`` and the tensor's name.
        device: number of the GPU whose stream it is on.
        kind: ``upload`` and ``download`` are from and to the host, ``send`` is to another GPU.
        reads: places.
        writes: places.
        waits: numbers of the steps that make what it reads, smaller than its own.
    """

    name: str
    device: int
    kind: Literal["stage", "upload", "download", "send"]
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    waits: tuple[int, ...]

    @property
    def of_caller(self) -> bool:
        """Whether it is a copy of what the caller gives or gets."""
        return self.kind != "stage" and self.name in ("upload", "download")

    @property
    def words(self) -> str:
        """In words, for messages."""
        if self.kind == "stage":
            return f"stage '{self.name}' on cuda:{self.device}"
        tensor, ends = self.reads[0][1], (self.reads[0][0], self.writes[0][0])
        source, target = ("the host" if end == HOST else f"cuda:{end}" for end in ends)
        return f"the copy of '{tensor}' from {source} to {target}"


def schedule(
    stages: Sequence[CudaStage],
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    reaches: Reaches,
) -> tuple[Step, ...]:
    """Everything that is done in a run.

    Args:
        stages: each after those whose outputs it reads.
        inputs: what the caller gives.
        outputs: what the caller gets.
        reaches: which GPUs' copies go straight to which.

    Raises:
        EngineError: there is no stage, a stage reads, or the caller wants, what nobody before
            gives, or two give the same.
    """
    if not stages:
        raise EngineError("there is no stage to run")
    building = _Building(reaches=reaches, given={spec.name: (HOST, spec) for spec in inputs})
    for stage in stages:
        building.add_stage(stage)
    for spec in outputs:
        building.bring(spec, HOST, "the caller wants")
    return tuple(building.steps)


@dataclass(kw_only=True, slots=True)
class _Building:
    """A schedule that is being made: where each tensor is made, and which step fills each place."""

    reaches: Reaches
    given: dict[str, tuple[int, TensorSpec]]
    steps: list[Step] = field(default_factory=list)
    made: dict[Place, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.made = {(HOST, name): None for name in self.given}

    def add_stage(self, stage: CudaStage) -> None:
        for spec in stage.inputs:
            self.bring(spec, stage.device, f"stage '{stage.name}' reads")
        names = [spec.name for spec in stage.outputs]
        if twice := [name for name in names if name in self.given or names.count(name) > 1]:
            raise EngineError(f"stage '{stage.name}' gives {twice}, which is given already")
        self.given |= {spec.name: (stage.device, spec) for spec in stage.outputs}
        reads = tuple((stage.device, spec.name) for spec in stage.inputs)
        self.add(stage.name, stage.device, "stage", reads, tuple((stage.device, n) for n in names))

    def bring(self, spec: TensorSpec, device: int, why: str) -> None:
        """Let a tensor be at a place, once it is known to be what is meant."""
        _, there = self.given.get(spec.name, (HOST, None))
        if there != spec:
            raise EngineError(f"{why} {_describe(spec)}, and what is there is {_describe(there)}")
        self.copy(spec.name, device, "download" if device == HOST else f"copy {spec.name}")

    def copy(self, tensor: str, device: int, name: str) -> None:
        origin, _ = self.given[tensor]
        source, target = (origin, tensor), (device, tensor)
        if target in self.made:
            return
        if origin == HOST:
            self.add("upload", device, "upload", (source,), (target,))
        elif device == HOST:
            self.add(name, origin, "download", (source,), (target,))
        elif self.reaches(origin, device):
            self.add(name, origin, "send", (source,), (target,))
        else:
            self.copy(tensor, HOST, name)
            self.add(name, device, "upload", ((HOST, tensor),), (target,))

    def add(
        self,
        name: str,
        device: int,
        kind: Literal["stage", "upload", "download", "send"],
        reads: tuple[Place, ...],
        writes: tuple[Place, ...],
    ) -> None:
        makers = {self.made[place] for place in reads}
        waits = tuple(sorted(number for number in makers if number is not None))
        self.made |= dict.fromkeys(writes, len(self.steps))
        self.steps.append(
            Step(name=name, device=device, kind=kind, reads=reads, writes=writes, waits=waits)
        )


def launches(steps: Sequence[Step], chosen: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Steps that are launched as one, and that one CUDA graph can hold.

    On one GPU that is all of them. With several, whatever leaves a launch is there when all of it
    has ended, and it starts when all that it waits for is there. So that no step starts later than
    it could, only a chain is launched as one: steps of one GPU, each the only one that waits for
    the step before, and waiting for nothing else. A copy to another GPU is always by itself, as no
    graph can hold it.

    Args:
        steps: a run.
        chosen: numbers of the steps to launch, in order.

    Returns:
        The numbers, each in one launch; a launch waits only for launches before it.
    """
    if len({steps[number].device for number in chosen}) == 1:
        return (tuple(chosen),)
    waited = [wait for number in chosen for wait in steps[number].waits]
    chains: dict[int, list[int]] = {}  # by their last step
    for number in chosen:
        waits = [wait for wait in steps[number].waits if wait in chosen]
        if len(waits) == 1 and waited.count(waits[0]) == 1 and waits[0] in chains:
            before = steps[waits[0]]
            if before.device == steps[number].device and _in_graphs(before, steps[number]):
                chains[number] = [*chains.pop(waits[0]), number]
                continue
        chains[number] = [number]
    return tuple(sorted(map(tuple, chains.values())))


def _in_graphs(*steps: Step) -> bool:
    return all(step.kind != "send" for step in steps)


def _describe(spec: TensorSpec | None) -> str:
    if spec is None:
        return "nothing of that name"
    return f"'{spec.name}', {spec.dtype}[{', '.join(map(str, spec.shape))}]"
