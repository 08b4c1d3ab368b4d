"""What a benchmark found: values that are printed, written as JSON and drawn on a page."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.statistics import Latency, Ratio
from parnet_deploy.errors import UsageError
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.verify.tolerances import FLOAT32

LONGEST = 86400.0
"""Seconds that a contestant can be asked to be timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How was measured.

    Attributes:
        batch: images per run.
        rounds: turns of each contestant; in every round the order is shuffled anew.
        processes: how often each contestant is started anew; the rounds are divided among them.
        warm_up: runs at the beginning of each turn that do not count, at least.
        warm_up_seconds: how long they go on, at least: clocks and caches take time, not runs.
        iterations: runs of a contestant that count, at least, over all rounds.
        seconds: seconds that a contestant is timed, at least, over all rounds.
        seed: of the order and of the images.
    """

    batch: int = 1
    rounds: int = 12
    processes: int = 3
    warm_up: int = 3
    warm_up_seconds: float = 0.2
    iterations: int = 100
    seconds: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no measurement.

        Raises:
            UsageError: a number is too small.
        """
        for name in ("batch", "rounds", "processes", "iterations"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is at least 1, not {getattr(self, name)}")
        if min(self.warm_up, self.warm_up_seconds, self.seconds, self.seed) < 0:
            raise UsageError("--warm-up, --warm-up-seconds, --seconds and --seed are not negative")
        if max(self.seconds, self.warm_up_seconds) > LONGEST:
            raise UsageError(f"--seconds and --warm-up-seconds are at most {LONGEST:.0f}, a day")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How near a contestant's answers are to the training form's in float64.

    Attributes:
        max_abs: greatest difference of an output.
        max_rel: that over the greatest magnitude in the reference's outputs.
        same_top1: images with the same top-1 class.
        images: how many images were compared.
        right: images whose label is its top-1 class; None where they have no labels.
        reference_right: images whose label is the training form's, likewise.
        blind: what is wrong with answers that do not follow the images
            (`runtime.outputs.unresponsive`); None where they do, or where it need not be asked.
    """

    max_abs: float
    max_rel: float
    same_top1: int
    images: int
    right: int | None = None
    reference_right: int | None = None
    blind: str | None = None

    @property
    def agreement(self) -> float:
        """Share of images with the training form's top-1 class."""
        return self.same_top1 / self.images

    @property
    def accuracy(self) -> float | None:
        """Share of images whose label is the top-1 class, where they have labels."""
        return None if self.right is None else self.right / self.images


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """The least time that the device's peak figures allow a network, in milliseconds.

    Attributes:
        device: which device, and where its figures are from.
        roofline: sum over layers of the greater of operations and bytes over their peak rates.
        launches: depth of dependent kernels times the cost of one.
    """

    device: str
    roofline: float
    launches: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.roofline + self.launches


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one contestant did.

    Attributes:
        contestant: who.
        rounds: latencies from host memory to host memory in milliseconds, round by round.
        latency: those in few numbers.
        compute: without copies from and to host memory, where the runner can tell.
        ratio: of `latency` to that of the reference of the same network.
        throughput: images per second, one run after the other.
        first_answer: seconds from the start of its process to its first answer, process by
            process.
        host_memory: greatest resident memory of its process, in bytes.
        gpu_memory: memory of its process on GPUs in bytes after its last turn, where NVML tells.
        parity: how near its answers are to the training form's, None where none is at hand.
        tolerance: greatest relative error with which its answers count as right.
        timeline: one run's stages, where the runner can tell them apart.
        floor: of its network on its device, where the device's figures are known.
        precision: what it computes in: ``fp32`` ...
        kernels: launches of a run, where known.
        warnings: what makes its figures doubtful.
    """

    contestant: Contestant
    rounds: tuple[tuple[float, ...], ...]
    latency: Latency
    compute: Latency | None = None
    ratio: Ratio
    throughput: float
    first_answer: tuple[float, ...]
    host_memory: int
    gpu_memory: int | None = None
    parity: Parity | None = None
    tolerance: float = FLOAT32
    timeline: tuple[Span, ...] = ()
    floor: Floor | None = None
    precision: str = "fp32"
    kernels: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether its answers are the training form's, as far as its precision allows.

        That is: no output is further off than the tolerance, the answers follow the images, and in
        float32 every image has the same top-1 class. What a lower precision loses of these is its
        price, and is told beside its latency. Where it cannot be known, nothing is held against it.
        """
        parity = self.parity
        if parity is None:
            return True
        same = parity.same_top1 == parity.images or self.lowered
        return same and parity.blind is None and parity.max_rel <= self.tolerance

    @property
    def lowered(self) -> bool:
        """Whether it computes in less than float32, or its graph is in less."""
        return self.precision != "fp32" or self.graph not in ("", "fp32")

    @property
    def graph(self) -> str:
        """The precision of the graph that it was built from; empty where that is not known."""
        return str(self.contestant.settings.get("precision", ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Absence:
    """A contestant that was asked for and did not take part, and why."""

    name: str
    network: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """On what, and in which state, was measured.

    Attributes:
        hardware: CPU with cores, and GPUs, one a line.
        versions: of what took part, by package.
        observations: clocks, temperatures, load of the machine before and after, in words.
        warnings: what makes all figures doubtful.
    """

    hardware: tuple[str, ...]
    versions: Mapping[str, str]
    observations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """A whole benchmark.

    Attributes:
        title: what was measured.
        command: what makes it again.
        settings: how.
        conditions: on what.
        outcomes: of every contestant, network by network, the fastest first.
        absent: who was asked for and did not take part.
        images: what the answers were compared on, in words.
        verdict: sentences: which schedule won, by how much, and where splitting loses.
        date: when it ended, UTC, ISO 8601.
    """

    title: str
    command: str
    settings: Settings
    conditions: Conditions
    outcomes: tuple[Outcome, ...]
    absent: tuple[Absence, ...] = ()
    images: str = ""
    verdict: tuple[str, ...] = ()
    date: str = field(default_factory=_now)

    def of(self, network: str) -> tuple[Outcome, ...]:
        """Outcomes of one network, the fastest first."""
        return tuple(o for o in self.outcomes if o.contestant.network == network)

    def reference(self, network: str) -> Outcome | None:
        """Whose latencies a network's ratios are taken to: its own ratio is 1 in every round."""
        own = (1.0, 1.0, 1.0)
        for outcome in self.of(network):
            if (outcome.ratio.low, outcome.ratio.median, outcome.ratio.high) == own:
                return outcome
        return None

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks, in their order."""
        return tuple(dict.fromkeys(o.contestant.network for o in self.outcomes))
