"""What many latencies say, in few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parnet_deploy.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Latencies in milliseconds.

    Attributes:
        count: how many.
        mean: arithmetic mean.
        minimum: the shortest.
        p50: median; `p90`, `p95` and `p99` are percentiles as well, interpolated linearly.
        variation: coefficient of variation: standard deviation over mean.
        drift: the greatest difference of a round's median from the median of all, relative to it.
    """

    count: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    variation: float
    drift: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A contestant's time over the reference's, each round's medians by each other.

    Attributes:
        median: over the rounds.
        low: first quartile.
        high: third quartile.
    """

    median: float
    low: float
    high: float


def describe(rounds: Sequence[Sequence[float]]) -> Latency:
    """Put latencies into numbers.

    Args:
        rounds: milliseconds, round by round; no round is empty.

    Raises:
        UsageError: there is no round, or an empty one.
    """
    if not rounds or not all(len(latencies) for latencies in rounds):
        raise UsageError("a latency needs at least one run in each round")
    every = np.concatenate([np.asarray(latencies, np.float64) for latencies in rounds])
    p50, p90, p95, p99 = (float(np.percentile(every, q)) for q in (50, 90, 95, 99))
    medians = np.array([np.median(latencies) for latencies in rounds])
    return Latency(
        count=every.size,
        mean=float(every.mean()),
        minimum=float(every.min()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        variation=float(every.std() / every.mean()),
        drift=float(np.abs(medians / p50 - 1).max()),
    )


def compare(rounds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Ratio:
    """Compare two contestants of one interleaved run, round by round.

    What disturbs a machine for a while disturbs both in the same round, and falls out.

    Args:
        rounds: milliseconds of one, round by round.
        reference: milliseconds of the other in the same rounds.

    Raises:
        UsageError: they have not the same number of rounds, or none.
    """
    if len(rounds) != len(reference) or not rounds:
        raise UsageError(
            f"rounds are compared one by one, and there are {len(rounds)} and {len(reference)}"
        )
    logarithms = [
        float(np.log(np.median(own) / np.median(other)))
        for own, other in zip(rounds, reference, strict=True)
    ]
    # Of logarithms, so that the other way round gives the inverse, also of an even number.
    low, median, high = (float(np.exp(np.percentile(logarithms, q))) for q in (25, 50, 75))
    return Ratio(median=median, low=low, high=high)
