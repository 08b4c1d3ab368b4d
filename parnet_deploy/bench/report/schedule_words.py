"""The schedules in sentences: which of them won, by how much, and when splitting loses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from parnet_deploy.bench.report import figures
from parnet_deploy.bench.report.duel import duel
from parnet_deploy.bench.result import BenchResult, Outcome

SCHEDULES = {
    "whole-one-stream": "whole without auxiliary streams",
    "whole": "whole with auxiliary streams",
    "split-one-device": "split on one device",
    "split": "split on all devices",
}
"""Values of a contestant's setting `schedule`."""

Schedules = Mapping[str, Outcome]
"""Of one kind of engine the fastest of each schedule, the fastest of them first."""

_SPLIT = ("split-one-device", "split")


def sentences(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Whether splitting pays, and how the schedules compare, for each kind of engine.

    Args:
        outcomes: one network's whose answers are right, the fastest first.
    """
    engines = by_engine(outcomes)
    alone = {
        schedule_name(outcome, ())
        for schedules in engines.values()
        for outcome in schedules.values()
    }
    if len(engines) > 1 and len(alone) == 1:
        yield f"of the schedules only '{alone.pop()}' is known, of every engine."
        return
    for engine, schedules in engines.items():
        where = f"{engine}, " if len(engines) > 1 else ""
        if len(schedules) == 1:
            (only,) = schedules.values()
            name = schedule_name(only, schedules)
            yield f"{where}of the schedules only '{name}' is known."
        else:
            yield where + _compared(schedules)


def pairs(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """Contestants that `sentences` compares."""
    for schedules in by_engine(outcomes).values():
        first, *others = schedules.values()
        yield from ((first, other) for other in others)


def over_networks(result: BenchResult) -> Iterator[str]:
    """For which networks splitting pays and for which it loses, for each kind of engine."""
    words = {"faster": "pays", "slower": "loses", "undecided": "makes no certain difference"}
    found: dict[str, dict[str, list[str]]] = {}
    for network in result.networks:
        for engine, schedules in by_engine([o for o in result.of(network) if o.right]).items():
            if pair := _split_and_whole(schedules):
                verdict = words[duel(*pair).verdict]
                found.setdefault(engine, {}).setdefault(verdict, []).append(network)
    for engine, verdicts in found.items():
        parts = [f"{verdict} for {figures.listed(those)}" for verdict, those in verdicts.items()]
        yield f"over all networks {engine}: splitting {'; it '.join(parts)}."


def schedule_name(outcome: Outcome, among: Iterable[str]) -> str:
    """A schedule in words, no more precise than what it is told from."""
    schedule = str(outcome.contestant.settings["schedule"])
    if schedule == "whole" and "whole-one-stream" not in among:
        return "whole"  # nobody asked about auxiliary streams, which a CPU does not have
    if schedule == "split":
        devices = outcome.contestant.devices
        return f"split on {figures.listed(devices)}" if len(devices) > 1 else "split"
    return SCHEDULES[schedule]


def by_engine(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Outcome]]:
    """Our schedules by kind of engine, each with the fastest of it; equals are compared.

    What differs in backend, precision or kind of device is not.

    Args:
        outcomes: the fastest first.
    """
    found: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        schedule = outcome.contestant.settings.get("schedule")
        if outcome.contestant.group == "ours" and schedule in SCHEDULES:
            found.setdefault(_engine(outcome), {}).setdefault(schedule, outcome)
    return found


def _compared(schedules: Schedules) -> str:
    """The fastest schedule against the best of the other kind, then against all others."""
    first, *others = schedules.values()
    pair = _split_and_whole(schedules)
    if pair is None:
        return f"{_against(first, others, schedules)}."
    # The fastest of all is the best of its kind.
    rival = pair[1] if pair[0] is first else pair[0]
    found = duel(first, rival)
    rest = [other for other in others if other is not rival]
    more = f"; {_against(first, rest, schedules)}" if rest else ""
    names = schedule_name(first, schedules), schedule_name(rival, schedules)
    if found.verdict == "faster" and rival is pair[0]:
        return (
            f"splitting loses: {names[1]} takes {figures.times(found.speed.median)} as long as "
            f"{names[0]} ({figures.evidence(found)}){more}."
        )
    claim, doubt = "splitting pays", ""
    if found.verdict != "faster":
        claim = "splitting neither pays nor loses for certain"
        doubt = f"; {figures.doubt(found)}"
    return (
        f"{claim}: {names[0]} is {figures.times(found.speed.median)} as fast as {names[1]} "
        f"({figures.evidence(found)}{doubt}){more}."
    )


def _against(first: Outcome, others: Sequence[Outcome], schedules: Schedules) -> str:
    words = []
    for other in others:
        found = duel(first, other)
        doubt = "" if found.verdict == "faster" else f"; {figures.doubt(found)}"
        words.append(
            f"{figures.times(found.speed.median)} as fast as {schedule_name(other, schedules)} "
            f"({figures.evidence(found)}{doubt})"
        )
    return f"{schedule_name(first, schedules)} is {figures.listed(words)}"


def _split_and_whole(schedules: Schedules) -> tuple[Outcome, Outcome] | None:
    """The best split schedule and the best whole one, where there are both."""
    split = [outcome for name, outcome in schedules.items() if name in _SPLIT]
    whole = [outcome for name, outcome in schedules.items() if name not in _SPLIT]
    return (split[0], whole[0]) if split and whole else None


def _engine(outcome: Outcome) -> str:
    backend = outcome.contestant.settings.get("backend")
    where = "a CPU" if outcome.contestant.devices[0] == "cpu" else "GPUs"
    return f"{f'of {backend} ' if backend else ''}in {outcome.precision} on {where}"
