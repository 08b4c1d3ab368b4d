"""Figures, ratios round by round, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving_contest.rounds import ENGINE, Round

OURS = "ours"
RIVAL = "triton"

Quartiles = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""

PERCENTILES = ("p50", "p90", "p99")
JUDGED = ("p50", "p99")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A contestant in one group; milliseconds, medians over rounds.

    Attributes:
        name: whose.
        latency: as its clients saw it, by percentile.
        added: the same less the engine's own p50 of the same round.
        processor: of the server, per request; None for the engine.
        ratio: added, as a multiple of what Triton adds in the same round: lower quartile, median,
            upper quartile; by percentile. Empty for the engine, and where Triton has no figures;
            None where Triton adds nothing in a round, as nothing can be divided by that.
    """

    name: str
    latency: Mapping[str, float]
    added: Mapping[str, float]
    processor: float | None
    ratio: Mapping[str, Quartiles | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether ours adds at most as much as Triton.

    Attributes:
        group: of which body, from how many clients.
        percentile: ``p50`` or ``p99``.
        quartiles: of the ratio of what ours and Triton add, round by round; None: there is none.
    """

    group: str
    percentile: str
    quartiles: Quartiles | None

    @property
    def holds(self) -> bool | None:
        """By the median of the rounds; None: undecided."""
        return None if self.quartiles is None else self.quartiles[1] <= 1.0

    @property
    def fails(self) -> bool:
        """Whether ours adds more in most of the rounds: the lower quartile is above 1."""
        return self.quartiles is not None and self.quartiles[0] > 1.0

    @property
    def sentence(self) -> str:
        """In words, and whether most rounds agree."""
        if self.quartiles is None:
            return (
                f"{self.group}, {self.percentile}: UNDECIDED, as Triton was not slower than the "
                "engine alone in a round; the machine had other things to do"
            )
        low, middle, high = self.quartiles
        is_clear = high <= 1.0 or low > 1.0
        how = "at most as much as" if self.holds else "MORE than"
        doubt = "" if is_clear else "; the quartiles lie on both sides of 1, so rounds disagree"
        return (
            f"{self.group}, {self.percentile}: ours adds {how} Triton: {middle:.2f} of it "
            f"(quartiles {low:.2f} to {high:.2f}){doubt}"
        )


def rows_of(rounds: Sequence[Round], group: str) -> list[Row]:
    """A group's table, the engine first, then the others by what they add at p50.

    Only those who took part in every round are in it.
    """
    found = [measured[group] for measured in rounds]
    names = [name for name in found[0] if all(name in figures for figures in found)]
    rows = []
    for name in names:
        latency = {p: _median([figures[name][p] for figures in found]) for p in PERCENTILES}
        added = {p: _median(_added(found, name, p)) for p in PERCENTILES}
        ratio: dict[str, Quartiles | None] = {}
        if name != ENGINE and RIVAL in names:
            ratio = {p: _ratios(found, name, p) for p in PERCENTILES}
        computed = [figures[name]["processor"] for figures in found if name != ENGINE]
        rows.append(
            Row(
                name=name,
                latency=latency,
                added=added,
                processor=_median(computed) if computed else None,
                ratio=ratio,
            )
        )
    return sorted(rows, key=lambda row: (row.name != ENGINE, row.added["p50"]))


def verdicts(rounds: Sequence[Round]) -> list[Verdict]:
    """Every group's, where both took part."""
    return [
        Verdict(group=group, percentile=percentile, quartiles=row.ratio[percentile])
        for group in rounds[0]
        for row in rows_of(rounds, group)
        if row.name == OURS and row.ratio
        for percentile in JUDGED
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as Markdown; milliseconds."""
    head = [*PERCENTILES, *(f"added {p}" for p in PERCENTILES)]
    head += ["processor", *(f"added {p}, of Triton's" for p in JUDGED)]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for row in rows:
        latency = [f"{row.latency[p]:.2f}" for p in PERCENTILES]
        added = ["" if row.name == ENGINE else f"{row.added[p]:.2f}" for p in PERCENTILES]
        ratios = [_quartiles(row.ratio[p]) if row.ratio else "" for p in JUDGED]
        computed = "" if row.processor is None else f"{row.processor:.2f}"
        lines.append(f"| {' | '.join([row.name, *latency, *added, computed, *ratios])} |")
    return lines


def _added(found: Sequence[Mapping[str, Mapping[str, float]]], name: str, p: str) -> list[float]:
    """What a contestant adds to the engine's own median, round by round."""
    return [figures[name][p] - figures[ENGINE]["p50"] for figures in found]


def _ratios(
    found: Sequence[Mapping[str, Mapping[str, float]]], name: str, p: str
) -> Quartiles | None:
    own, rivals = np.array(_added(found, name, p)), np.array(_added(found, RIVAL, p))
    if (rivals <= 0).any():
        return None
    low, middle, high = np.percentile(own / rivals, (25, 50, 75))
    return float(low), float(middle), float(high)


def _quartiles(ratio: Quartiles | None) -> str:
    if ratio is None:
        return "undecided"
    low, middle, high = ratio
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
