"""A benchmark in sentences. None of them claims more than the spread allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from parnet_deploy.bench.report import figures, precision_words, schedule_words
from parnet_deploy.bench.report.duel import duel
from parnet_deploy.bench.result import BenchResult, Outcome, Parity
from parnet_deploy.bench.statistics import Latency

MOST_VARIATION = 0.1
"""Coefficient of variation above which a contestant is called unstable."""

BELOW = (
    "less than the floor, which counts direct convolution: Winograd's algorithm multiplies less, "
    "and the figures of a CPU are those that numpy reaches"
)
"""Where a contestant is faster than what should be the fastest possible."""

MOST_DRIFT = 0.1
"""Relative distance of a round's median from the median of all that makes it unstable, too."""

ADVICE = (
    f"Unstable is a variation above {figures.percent(MOST_VARIATION)} or a drift above "
    f"{figures.percent(MOST_DRIFT)}: let nothing else run on the machine, "
    "fix its clocks where you may, raise --rounds or --seconds, and measure again."
)

Basis = Literal["compute alone", "end to end"]


def sentences(result: BenchResult) -> tuple[str, ...]:
    """What was found: winners, schedules, peers, floors, who is wrong, and who is missing.

    What is unstable stands in the tables' notes (`table.latency_sheet`).
    """
    found: list[str] = []
    for network in result.networks:
        found += network_sentences(result.of(network), network)
    if len(result.networks) > 1:
        found += schedule_words.over_networks(result)
    found += [
        f"{absence.network}: '{absence.name}' did not take part: {absence.reason}."
        for absence in result.absent
    ]
    return tuple(found)


def network_sentences(outcomes: Sequence[Outcome], network: str) -> list[str]:
    """The sentences on one network. Whose answers are not right is compared with nobody.

    Args:
        outcomes: its contestants', the fastest first.
        network: its name, which stands in front of each sentence.
    """
    right = [outcome for outcome in outcomes if outcome.right]
    # Whose answers cannot be judged may be fast by being wrong: beside others it wins nothing.
    right = [outcome for outcome in right if outcome.parity is not None] or right
    pairs = list(peer_pairs(right))
    told = [*pairs, *schedule_words.pairs(right), *precision_words.pairs(right)]
    said = (
        _fastest(right, told),
        *precision_words.sentences(right),
        *schedule_words.sentences(right),
        *(_against(best, peer) for best, peer in pairs),
        *floor_sentences(right, floor_basis(outcomes)),
        *_not_right(outcomes),
        *_not_known(outcomes),
        *precision_words.wrong(outcomes),
    )
    return [f"{network}: {sentence}" for sentence in said]


def instability(latency: Latency) -> str | None:
    """Why a contestant's latencies are not to be trusted, or None where they are."""
    reasons = []
    if latency.variation > MOST_VARIATION:
        reasons.append(f"its latencies vary by {figures.percent(latency.variation)}")
    if latency.drift > MOST_DRIFT:
        reasons.append(f"a round's median lies {figures.percent(latency.drift)} off")
    return " and ".join(reasons) or None


def peer_pairs(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """Our best beside each peer: on the same kind of device and in its precision, where we can."""
    ours = [outcome for outcome in outcomes if outcome.contestant.group == "ours"]
    for peer in outcomes:
        if ours and peer.contestant.group == "peer":
            # `max` takes the first of equals, and the fastest stand first.
            yield max(ours, key=lambda own: _likeness(own, peer)), peer


def floor_basis(outcomes: Sequence[Outcome]) -> Basis:
    """What a network's contestants are held against the floor with: the same of all.

    Compute alone has no copies, as the floor has none; where one cannot tell it, all are taken
    from host memory to host memory.
    """
    known = all(o.compute is not None for o in outcomes if o.floor is not None)
    return "compute alone" if known else "end to end"


def floor_sentences(outcomes: Sequence[Outcome], basis: Basis) -> Iterator[str]:
    """How far above the hardware's floor our fastest stands, floor by floor."""
    seen = set()
    for outcome in outcomes:
        floor = outcome.floor
        if floor is None or outcome.contestant.group != "ours" or floor in seen:
            continue
        seen.add(floor)
        parts = f"{figures.milliseconds(floor.roofline)} ms of operations and bytes"
        if floor.launches:
            parts += f", {figures.milliseconds(floor.launches)} ms of launches"
        factor = times_floor(outcome, basis)
        below = f"; {BELOW}" if factor < 1 else ""
        computed = precision_words.words_of(outcome)
        yield (
            f"{_name(outcome)} ({computed}, {basis}) takes {figures.times(factor)} the "
            f"floor of {figures.milliseconds(floor.total)} ms ({parts}; {floor.device}){below}."
        )


def times_floor(outcome: Outcome, basis: Basis) -> float:
    """How many times its floor a contestant takes.

    Raises:
        ValueError: its floor is not known, or not what is to be held against it.
    """
    latency = outcome.compute if basis == "compute alone" else outcome.latency
    if outcome.floor is None or latency is None:
        raise ValueError(f"'{outcome.contestant.name}': floor or {basis} is not known")
    return latency.p50 / outcome.floor.total


def _fastest(outcomes: Sequence[Outcome], told: Sequence[tuple[Outcome, Outcome]]) -> str:
    """The fastest, or those that cannot be told from it.

    Args:
        outcomes: whose answers are right, the fastest first.
        told: pairs that other sentences compare; their figures are not told here, too.
    """
    if not outcomes:
        return "nobody's answers are right: there is no fastest."
    first, *others = outcomes
    latency = figures.milliseconds(first.latency.p50)
    if not others:
        return f"{_who(first)} has nothing to be compared with: median {latency} ms."
    duels = [duel(first, other) for other in others]
    near = [
        f"{_who(other)} at {figures.milliseconds(other.latency.p50)} ms"
        for other, found in zip(others, duels, strict=True)
        if found.verdict != "faster"
    ]
    if near:
        few = f"; {figures.doubt(duels[0])}" if duels[0].too_short else ""
        return (
            f"no single fastest: {_who(first)}, median {latency} ms, cannot be told from "
            f"{figures.listed(near)}{few}."
        )
    lead = ""
    if not any(first in pair and others[0] in pair for pair in told):
        lead = (
            f"; {figures.times(duels[0].speed.median)} as fast as the next, "
            f"{_name(others[0])} ({figures.evidence(duels[0])})"
        )
    return (
        f"{_who(first)} is the fastest: median {latency} ms, {figures.rate(first.throughput)} "
        f"images/s{lead}{_care(first, others[0])}."
    )


def _care(*outcomes: Outcome) -> str:
    """A warning where a claim rests on latencies that were unstable."""
    shaky = any(instability(outcome.latency) for outcome in outcomes)
    return "; with care, since latencies are unstable" if shaky else ""


def _against(best: Outcome, peer: Outcome) -> str:
    """Our best against a peer: whoever is faster stands first."""
    found = duel(best, peer)
    if found.verdict == "slower":
        found = duel(peer, best)
        return (
            f"{_name(peer)} is {figures.times(found.speed.median)} as fast as our best, "
            f"{_name(best)}{_mixed(peer, best)} ({figures.evidence(found)})."
        )
    if found.verdict == "faster":
        return (
            f"our best, {_name(best)}, is {figures.times(found.speed.median)} as fast "
            f"as {_name(peer)}{_mixed(best, peer)} ({figures.evidence(found)})."
        )
    return (
        f"our best, {_name(best)}, and {_name(peer)}{_mixed(best, peer)} "
        f"cannot be told apart: {figures.times(found.speed.median)} as fast "
        f"({figures.evidence(found)}; {figures.doubt(found)})."
    )


def _likeness(own: Outcome, peer: Outcome) -> tuple[bool, bool]:
    return _kind(own) == _kind(peer), own.precision == peer.precision


def _kind(outcome: Outcome) -> str:
    """Kind of the device that a contestant runs on: ``cpu``, ``cuda``."""
    return outcome.contestant.devices[0].partition(":")[0]


def _mixed(one: Outcome, other: Outcome) -> str:
    """What two contestants that are compared do not have in common."""
    pairs = [(one.precision, other.precision), (_kind(one), _kind(other))]
    return "".join(f", {own} against {others}" for own, others in pairs if own != others)


def _not_right(outcomes: Sequence[Outcome]) -> Iterator[str]:
    wrong = [
        f"{_name(outcome)} ({_how_wrong(outcome, outcome.parity)})"
        for outcome in outcomes
        if outcome.parity is not None and not outcome.right
    ]
    if wrong:
        yield (
            f"{figures.listed(wrong)} "
            f"{'answers' if len(wrong) == 1 else 'answer'} otherwise than the training form, and "
            f"{'is' if len(wrong) == 1 else 'are'} compared with nobody."
        )


def _not_known(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Whose answers could be compared with nothing; the tables' notes say why."""
    unknown = [_name(outcome) for outcome in outcomes if outcome.parity is None]
    if not unknown:
        return
    alone = len(unknown) == len(outcomes)
    yield (
        f"how near the answers of {figures.listed(unknown)} are to the training form's is not known"
        + ("." if alone else ": so nothing is compared with them.")
    )


def _how_wrong(outcome: Outcome, parity: Parity) -> str:
    error = f"relative error {figures.error(parity.max_rel)}"
    if parity.max_rel > outcome.tolerance:
        error += f" where {figures.error(outcome.tolerance)} is allowed"
    if parity.blind is not None:
        error += f"; {parity.blind}"
    if parity.same_top1 == parity.images:
        return error
    return f"the same top-1 class for {parity.same_top1} of {parity.images} images, {error}"


def _name(outcome: Outcome) -> str:
    return f"'{outcome.contestant.name}'"


def _who(outcome: Outcome) -> str:
    whose = "ours" if outcome.contestant.group == "ours" else "a peer"
    return f"{_name(outcome)} ({whose}, {precision_words.words_of(outcome)})"
