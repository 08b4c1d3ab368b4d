"""Which of two contestants is faster, as far as their rounds can tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from parnet_deploy.bench.result import Outcome
from parnet_deploy.bench.statistics import Ratio, compare

SIGNIFICANCE = 0.05
"""So improbable must it be that two equals share the wins so unevenly."""

FEWEST_ROUNDS = next(n for n in range(1, 64) if 2 * 0.5**n <= SIGNIFICANCE)
"""With fewer, even winning them all could be chance."""

Verdict = Literal["faster", "slower", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Duel:
    """One contestant against another.

    Attributes:
        speed: how many times as fast it is as the other, over the rounds.
        won: rounds in which its median latency was the shorter.
        lost: rounds in which it was the longer.
    """

    speed: Ratio
    won: int
    lost: int

    @property
    def verdict(self) -> Verdict:
        """Faster or slower only where the quartiles and the number of rounds won both say so.

        The quartiles of the speed must lie on one side of 1, and a sign test over the rounds must
        find what was won too uneven for equals.
        """
        if sign_test(self.won, self.lost) > SIGNIFICANCE:
            return "undecided"
        if self.speed.low > 1:
            return "faster"
        return "slower" if self.speed.high < 1 else "undecided"

    @property
    def too_short(self) -> bool:
        """There were too few rounds to tell anything."""
        return self.won + self.lost < FEWEST_ROUNDS


def duel(one: Outcome, other: Outcome) -> Duel:
    """Compare two contestants of one interleaved run.

    Raises:
        UsageError: they have not the same number of rounds.
    """
    pairs = [
        (float(np.median(own)), float(np.median(others)))
        for own, others in zip(one.rounds, other.rounds, strict=False)
    ]
    return Duel(
        speed=compare(other.rounds, one.rounds),
        won=sum(own < others for own, others in pairs),
        lost=sum(own > others for own, others in pairs),
    )


def sign_test(won: int, lost: int) -> float:
    """How probable it is that equals share rounds at least so unevenly (two-sided)."""
    played = won + lost
    if not played:
        return 1.0
    ways = sum(math.comb(played, k) for k in range(min(won, lost) + 1))
    return min(1.0, math.ldexp(ways, 1 - played))
