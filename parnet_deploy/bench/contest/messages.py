"""What a benchmark and a contestant's process say to each other: one line of JSON each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.runtime.timeline import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The first line to a process.

    Attributes:
        contestant: what to open.
        batch: images per run.
        answers: ``.npy`` file that the answers to all images are written to, at the end.
    """

    contestant: Contestant
    batch: int
    answers: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Every further line: run now, and tell how long it took. Runs end when both are reached.

    Attributes:
        warm_up: runs before those that count, at least.
        warm_up_seconds: how long these go on, at least.
        iterations: runs that count, at least.
        seconds: how long to go on, at least.
    """

    warm_up: int
    warm_up_seconds: float
    iterations: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """The first answer has been given.

    Attributes:
        output: name of the network's output.
        precision: what it computes in.
        kernels: launches of a run, where that is known.
        versions: of the packages that run it.
    """

    output: str
    precision: str
    kernels: int | None
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turned:
    """Milliseconds of each run of a turn: end to end, and of some runs' compute alone."""

    latencies: tuple[float, ...]
    compute: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What is told once, at the end.

    Attributes:
        timeline: one run's stages, where the runner can tell them apart.
        host_memory: greatest resident memory in bytes.
        gpu_memory: memory on GPUs in bytes after the last turn, where NVML tells.
    """

    timeline: tuple[Span, ...]
    host_memory: int
    gpu_memory: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A line from a process: one of these."""

    error: str | None = None
    opened: Opened | None = None
    turned: Turned | None = None
    finished: Finished | None = None
