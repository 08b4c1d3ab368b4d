"""The precisions in sentences: what a lower one gains in time, and what it loses of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from parnet_deploy.bench.report import figures
from parnet_deploy.bench.report.duel import duel
from parnet_deploy.bench.result import Outcome, Parity
from parnet_deploy.spec.precision import QUANTISED

ORDER = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
"""From the most exact down."""

Precisions = dict[str, Outcome]
"""The fastest of each precision, the most exact precision first."""


def sentences(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """How each lower precision compares with the highest there is, and the best of all of each.

    With the highest of its own kind of engine, else with the highest of all.

    Args:
        outcomes: one network's whose answers are right, the fastest first.
    """
    for meeting in _meetings(outcomes):
        yield f"of {meeting.kind}, {_compared(meeting)}."
    kinds = by_kind(outcomes)
    if kinds and len(_kinds(outcomes)) > 1:
        yield from _over_all(outcomes, kinds)
    yield from _replaced(outcomes)


def pairs(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """Contestants that `sentences` compares."""
    for meeting in _meetings(outcomes):
        yield meeting.lower, meeting.first


def wrong(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What is to be said of ours below float32 whose answers are not right: that it is slower, too.

    Args:
        outcomes: all of one network.
    """
    right = [outcome for outcome in outcomes if outcome.right]
    bad = [o for o in outcomes if not o.right and o.lowered and o.contestant.group == "ours"]
    for outcome in bad:
        found = _highest(right, outcome)
        if found is not None and duel(outcome, found).verdict == "slower":
            yield f"'{outcome.contestant.name}' IS SLOWER, too: it {_longer(outcome, found)}."
    if any(o.graph in QUANTISED and o.parity and o.parity.right is None for o in bad):
        yield (
            "what is quantised was calibrated on images, and without --data everybody answers "
            "noise: with --data it is judged by images."
        )


def name_of(outcome: Outcome) -> str:
    """What it computes in, with what its graph is in where that is something else."""
    graph = outcome.graph
    if graph in ("", "fp32", outcome.precision):
        return outcome.precision
    return f"{graph} as {outcome.precision}"


def words_of(outcome: Outcome) -> str:
    """Its precision in a sentence: ``int8``; ``bf16 computed in fp32``."""
    return outcome.precision if _as_asked(outcome) else f"{outcome.graph} computed in fp32"


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

    What was to be in a lower precision, and is computed in float32, is none of them, but stands for
    float32 where nothing else does.

    Args:
        outcomes: the fastest first.
    """
    return {kind: found for kind, found in _kinds(outcomes).items() if len(found) > 1}


class _Meeting(NamedTuple):
    """A lower precision and those above it.

    Attributes:
        kind: which kind of engine the lower one is.
        lower: the lower one.
        higher: those above it, the most exact first.
    """

    kind: str
    lower: Outcome
    higher: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome:
        """The most exact."""
        return self.higher[0]


def _meetings(outcomes: Sequence[Outcome]) -> Iterator[_Meeting]:
    """Every precision of every kind that has a higher one beside it or elsewhere, once."""
    for kind, precisions in _kinds(outcomes).items():
        found = tuple(precisions.values())
        elsewhere = _highest(outcomes, found[0])
        if elsewhere is not None:
            yield _Meeting(kind, found[0], (elsewhere,))
        for place, lower in enumerate(found[1:], 1):
            yield _Meeting(kind, lower, found[:place])


def _highest(outcomes: Sequence[Outcome], of: Outcome) -> Outcome | None:
    """Our fastest in the highest precision above another's: of its kind of engine, else of all."""
    kinds = _kinds(outcomes)
    own = kinds.get(_kind(of), {}).values()
    everybody = [outcome for precisions in kinds.values() for outcome in precisions.values()]
    for pool in (own, sorted(everybody, key=lambda o: o.latency.p50)):
        above = [o for o in pool if _rank(o.precision) < _rank(of.precision)]
        if above:  # `min` takes the first of equals
            return min(above, key=lambda o: _rank(o.precision))
    return None


def _kinds(outcomes: Sequence[Outcome]) -> dict[str, Precisions]:
    """Our fastest in each precision by kind of engine, the most exact first."""
    found: dict[str, Precisions] = {}
    ours = [o for o in outcomes if o.contestant.group == "ours" and _backend(o)]
    for outcome in (*filter(_as_asked, ours), *(o for o in ours if not _as_asked(o))):
        found.setdefault(_kind(outcome), {}).setdefault(outcome.precision, outcome)
    return {
        kind: dict(sorted(precisions.items(), key=lambda item: _rank(item[0])))
        for kind, precisions in found.items()
    }


def _kind(outcome: Outcome) -> str:
    where = "a CPU" if outcome.contestant.devices[0] == "cpu" else "GPUs"
    return f"{_backend(outcome)} on {where}"


def _backend(outcome: Outcome) -> str:
    return str(outcome.contestant.settings.get("backend") or "")


def _compared(meeting: _Meeting) -> str:
    """A lower precision against a higher one: its time, then its price."""
    lower, first = meeting.lower, meeting.first
    found = duel(lower, first)
    name, other = words_of(lower), words_of(first)
    if _kind(first) != meeting.kind:
        other += f" of {_kind(first)}"
    paid = price(lower.parity)
    speed = f"{figures.times(found.speed.median)} as fast"
    if found.verdict == "faster":
        said = f"{name} is {speed} as {other} ({figures.evidence(found)})"
        said += f" and {paid}" if paid else ""
    elif found.verdict == "slower":
        said = f"{name} IS SLOWER: it {_longer(lower, first, other)}"
        said += f", and {paid}" if paid else ""
    else:
        said = (
            f"{name} cannot be told from {other} in time: {speed} "
            f"({figures.evidence(found)}; {figures.doubt(found)})"
        )
        said += f", and {paid}" if paid else ""
    return said + "".join(
        f"; beside {words_of(between)} it IS SLOWER: it {_longer(lower, between)}"
        for between in meeting.higher[1:]
        if duel(lower, between).verdict == "slower"
    )


def _longer(slower: Outcome, faster: Outcome, name: str | None = None) -> str:
    """``takes 1.20 times as long as fp32 (...)``."""
    found = duel(faster, slower)
    times = f"{figures.times(found.speed.median)} as long as {name or words_of(faster)}"
    return f"takes {times} ({figures.evidence(found)})"


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
    """Who computes in float32 what was asked for in less, and whether that costs time, too."""
    kinds = _kinds(outcomes)
    for outcome in outcomes:
        if _as_asked(outcome):
            continue
        said = (
            f"'{outcome.contestant.name}' computes its {outcome.graph} graph in fp32 "
            "('parnet-deploy verify' says whether it has to)"
        )
        own = kinds.get(_kind(outcome), {}).get("fp32")
        if own is not None and duel(outcome, own).verdict == "slower":
            said += f", and IS SLOWER: it {_longer(outcome, own)}"
        yield f"{said}."


def _as_asked(outcome: Outcome) -> bool:
    return outcome.graph in ("", "fp32") or outcome.precision != "fp32"


def _rank(precision: str) -> int:
    return ORDER.index(precision) if precision in ORDER else len(ORDER)


def _of(part: int, parity: Parity) -> str:
    return f"{part} of {parity.images}"
