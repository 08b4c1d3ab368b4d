"""The precisions in sentences: what a lower one gains in time, and what it loses of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parnet_deploy.bench.report import figures
from parnet_deploy.bench.report.duel import duel
from parnet_deploy.bench.result import Outcome, Parity

ORDER = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
"""From the most exact down."""

Precisions = dict[str, Outcome]
"""The fastest of each precision, the most exact precision first."""


def sentences(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """How each lower precision compares with the highest there is, and the best of all of each.

    Args:
        outcomes: one network's whose answers are right, the fastest first.
    """
    kinds = by_kind(outcomes)
    for kind, precisions in kinds.items():
        first, *lower = precisions.values()
        for outcome in lower:
            yield f"of {kind}, {_compared(first, outcome)}."
    if len(kinds) > 1:
        yield from _over_all(outcomes, kinds)
    yield from _replaced(outcomes)


def pairs(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """Contestants that `sentences` compares."""
    for precisions in by_kind(outcomes).values():
        first, *lower = precisions.values()
        yield from ((outcome, first) for outcome in lower)


def name_of(outcome: Outcome) -> str:
    """What it computes in, with what its graph is in where that is something else."""
    graph = outcome.graph
    if graph in ("", "fp32", outcome.precision):
        return outcome.precision
    return f"{graph} as {outcome.precision}"


def price(parity: Parity | None) -> str:
    """What is lost of the answers, in words; empty where nothing is known."""
    if parity is None:
        return ""
    if parity.right is not None and parity.reference_right is not None:
        lost = parity.reference_right - parity.right
        points = 100 * abs(lost) / parity.images
        change = f"loses {points:.1f} points of" if lost > 0 else f"gains {points:.1f} points of"
        kept = f"{change} accuracy" if lost else "keeps the accuracy"
        return f"{kept} ({_of(parity.right, parity)} recognised)"
    other = parity.images - parity.same_top1
    if not other:
        return f"has the training form's top-1 class for all {parity.images} images"
    share = figures.percent(other / parity.images)
    return f"has another top-1 class for {share} ({other} of {parity.images} images)"


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, Precisions]:
    """Our fastest in each precision, by backend and kind of device; where there are several.

    What was to be in a lower precision, and is computed in float32, is none of them.

    Args:
        outcomes: the fastest first.
    """
    found: dict[str, Precisions] = {}
    for outcome in outcomes:
        backend = outcome.contestant.settings.get("backend")
        if outcome.contestant.group == "ours" and backend and _as_asked(outcome):
            where = "a CPU" if outcome.contestant.devices[0] == "cpu" else "GPUs"
            found.setdefault(f"{backend} on {where}", {}).setdefault(outcome.precision, outcome)
    return {
        kind: dict(sorted(precisions.items(), key=lambda item: _rank(item[0])))
        for kind, precisions in found.items()
        if len(precisions) > 1
    }


def _compared(first: Outcome, lower: Outcome) -> str:
    """A lower precision against a higher one: its time, then its price."""
    found = duel(lower, first)
    names = lower.precision, first.precision
    paid = price(lower.parity)
    if found.verdict == "faster":
        times = f"{figures.times(found.speed.median)} as fast as {names[1]}"
        said = f"{names[0]} is {times} ({figures.evidence(found)})"
        return f"{said} and {paid}" if paid else said
    if found.verdict == "slower":
        longer = duel(first, lower)
        times = f"{figures.times(longer.speed.median)} as long as {names[1]}"
        said = f"{names[0]} IS SLOWER: it takes {times} ({figures.evidence(longer)})"
    else:
        said = (
            f"{names[0]} cannot be told from {names[1]} in time: "
            f"{figures.times(found.speed.median)} as fast "
            f"({figures.evidence(found)}; {figures.doubt(found)})"
        )
    return f"{said}, and {paid}" if paid else said


def _over_all(outcomes: Sequence[Outcome], kinds: dict[str, Precisions]) -> Iterator[str]:
    """Where a higher precision of one backend is as fast as a lower one of all."""
    known = {id(outcome) for precisions in kinds.values() for outcome in precisions.values()}
    known |= {id(outcome) for outcome in outcomes if outcome.precision == "fp32"}
    best: Precisions = {}
    for outcome in outcomes:
        ours = outcome.contestant.group == "ours" and _as_asked(outcome)
        if ours and id(outcome) in known:
            best.setdefault(outcome.precision, outcome)
    for name, lower in best.items():
        higher = [o for other, o in best.items() if _rank(other) < _rank(name)]
        beaten = [o for o in higher if duel(lower, o).verdict != "faster"]
        for outcome in beaten:
            found = duel(outcome, lower)
            how = "cannot be told from" if found.verdict == "undecided" else "beats"
            yield (
                f"the fastest in {outcome.precision}, '{outcome.contestant.name}', {how} the "
                f"fastest in {name}, '{lower.contestant.name}': "
                f"{figures.times(found.speed.median)} as fast ({figures.evidence(found)})."
            )


def _replaced(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Who computes in float32 what was asked for in less."""
    names = [f"'{o.contestant.name}'" for o in outcomes if not _as_asked(o)]
    if names:
        verb = "computes" if len(names) == 1 else "compute"
        yield f"{figures.listed(names)} {verb} in fp32: this device has no kernels for less."


def _as_asked(outcome: Outcome) -> bool:
    return outcome.graph in ("", "fp32") or outcome.precision != "fp32"


def _rank(precision: str) -> int:
    return ORDER.index(precision) if precision in ORDER else len(ORDER)


def _of(part: int, parity: Parity) -> str:
    return f"{part} of {parity.images}"
