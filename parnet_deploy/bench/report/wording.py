"""A benchmark in sentences. None of them claims more than the spread allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parnet_deploy.bench.report import figures, schedule_words
from parnet_deploy.bench.report.duel import duel
from parnet_deploy.bench.result import BenchResult, Outcome
from parnet_deploy.bench.statistics import Latency

MOST_VARIATION = 0.1
"""Coefficient of variation above which a contestant is called unstable."""

MOST_DRIFT = 0.1
"""Relative distance of a round's median from the median of all that makes it unstable, too."""


def sentences(result: BenchResult) -> tuple[str, ...]:
    """What was found: winners, schedules, peers, floors, doubts, and who is missing."""
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
    """The sentences on one network.

    Args:
        outcomes: its contestants', the fastest first.
        network: its name, which stands in front of each sentence.
    """
    said = (
        _fastest(outcomes),
        *schedule_words.sentences(outcomes),
        *peer_sentences(outcomes),
        *floor_sentences(outcomes),
        *_other_answers(outcomes),
        *_unstable(outcomes),
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


def peer_sentences(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Our best against each peer: on the same kind of device and in its precision, where we can."""
    ours = [outcome for outcome in outcomes if outcome.contestant.group == "ours"]
    if not ours:
        return
    for peer in outcomes:
        if peer.contestant.group == "peer":
            # `max` takes the first of equals, and the fastest stand first.
            yield _against(max(ours, key=lambda own: _likeness(own, peer)), peer)


def floor_sentences(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """How far above the hardware's floor our fastest stands, floor by floor."""
    seen = set()
    for outcome in outcomes:
        floor = outcome.floor
        if floor is None or outcome.contestant.group != "ours" or floor in seen:
            continue
        seen.add(floor)
        what = "end to end" if outcome.compute is None else "compute alone"
        parts = f"{figures.milliseconds(floor.roofline)} ms of operations and bytes"
        if floor.launches:
            parts += f", {figures.milliseconds(floor.launches)} ms of launches"
        yield (
            f"{_name(outcome)} ({outcome.precision}, {what}) stands at "
            f"{figures.times(times_floor(outcome))} the floor of "
            f"{figures.milliseconds(floor.total)} ms ({parts}; {floor.device})."
        )


def times_floor(outcome: Outcome) -> float:
    """How many times its floor a contestant takes: its compute where known, since it has no copies.

    Raises:
        ValueError: its floor is not known.
    """
    if outcome.floor is None:
        raise ValueError(f"the floor of '{outcome.contestant.name}' is not known")
    return (outcome.compute or outcome.latency).p50 / outcome.floor.total


def _fastest(outcomes: Sequence[Outcome]) -> str:
    """The fastest whose answers are right, or those that cannot be told from it."""
    right = [outcome for outcome in outcomes if not _answers_otherwise(outcome)] or list(outcomes)
    first, *others = right
    faster = outcomes[: outcomes.index(first)]
    wrong = f"; {figures.listed(map(_name, faster))} answered otherwise" if faster else ""
    latency = figures.milliseconds(first.latency.p50)
    if not others:
        return f"{_who(first)} has nothing to be compared with: median {latency} ms{wrong}."
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
            f"{figures.listed(near)}{few}{wrong}."
        )
    return (
        f"{_who(first)} is the fastest: median {latency} ms, {figures.rate(first.throughput)} "
        f"images/s; {figures.times(duels[0].speed.median)} as fast as the next, "
        f"{_name(others[0])} ({figures.evidence(duels[0])}){wrong}{_care(first, others[0])}."
    )


def _care(*outcomes: Outcome) -> str:
    """A warning where a claim rests on latencies that were unstable."""
    return "; unstable, as below" if any(instability(o.latency) for o in outcomes) else ""


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


def _other_answers(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        parity = outcome.parity
        if parity is not None and _answers_otherwise(outcome):
            yield (
                f"{_name(outcome)} answers otherwise than the training form: it has the "
                f"same top-1 class for {parity.same_top1} of {parity.images} images, and its "
                f"greatest relative error is {figures.error(parity.max_rel)}."
            )


def _unstable(outcomes: Sequence[Outcome]) -> Iterator[str]:
    shaky = [(outcome, instability(outcome.latency)) for outcome in outcomes]
    words = [f"{_name(outcome)} ({reason})" for outcome, reason in shaky if reason]
    if words:
        yield (
            f"unstable: {figures.listed(words)}; a variation above "
            f"{figures.percent(MOST_VARIATION)} or a drift above {figures.percent(MOST_DRIFT)} is "
            "too much. "
            "Let nothing else run on the machine, fix its clocks where you may, raise --rounds or "
            "--seconds, and measure again."
        )


def _answers_otherwise(outcome: Outcome) -> bool:
    """Whether an image has another top-1 class than the training form gives it."""
    return outcome.parity is not None and outcome.parity.same_top1 < outcome.parity.images


def _name(outcome: Outcome) -> str:
    return f"'{outcome.contestant.name}'"


def _who(outcome: Outcome) -> str:
    whose = "ours" if outcome.contestant.group == "ours" else "a peer"
    return f"{_name(outcome)} ({whose}, {outcome.precision})"
