"""When each stage of one run started and ended, and what a run's compute takes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from parnet_deploy.spec import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One stage's part of a run.

    Attributes:
        stage: its name; ``upload`` and ``download`` for copies from and to host memory.
        device: where it ran.
        start: seconds after the run began.
        end: seconds after the run began.
    """

    stage: str
    device: str
    start: float
    end: float


@runtime_checkable
class Traces(Protocol):
    """A runner that can tell the stages of a run apart."""

    def trace(self, feeds: Mapping[str, Array]) -> tuple[Span, ...]:
        """Run once, and tell when each stage started and ended, in the order of their starts.

        Raises:
            RunnerError: as `Runner.run`.
        """
        ...


@runtime_checkable
class TimesCompute(Protocol):
    """A runner that can leave the copies from and to host memory out of what it times."""

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        """Run once. Seconds from the first kernel's start to the last one's end.

        Raises:
            RunnerError: as `Runner.run`.
        """
        ...
