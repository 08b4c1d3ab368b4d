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
    """Which schedule won, by how much, and whether splitting pays, for each kind of engine.

    Args:
        outcomes: one network's, the fastest first.
    """
    for engine, schedules in by_engine(outcomes).items():
        if len(schedules) == 1:
            (only,) = schedules.values()
            name = schedule_name(only, schedules)
            yield f"of the schedules {engine} only '{name}' ran: nothing is known of the others."
            continue
        yield _winner(engine, schedules)
        if verdict := splitting(schedules):
            yield verdict


def over_networks(result: BenchResult) -> Iterator[str]:
    """For which networks splitting pays and for which it loses, for each kind of engine."""
    words = {"faster": "pays", "slower": "loses", "undecided": "makes no certain difference"}
    found: dict[str, dict[str, list[str]]] = {}
    for network in result.networks:
        for engine, schedules in by_engine(result.of(network)).items():
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


def splitting(schedules: Schedules) -> str | None:
    """Whether splitting pays: the best split schedule against the best whole one."""
    pair = _split_and_whole(schedules)
    if pair is None:
        return None
    names = [schedule_name(outcome, schedules) for outcome in pair]
    found = duel(*pair)
    if found.verdict == "slower":
        found = duel(pair[1], pair[0])
        return (
            f"splitting loses: {names[0]} takes {figures.times(found.speed.median)} as long as "
            f"{names[1]} ({figures.evidence(found)})."
        )
    claim, doubt = "splitting pays", ""
    if found.verdict == "undecided":
        claim = "splitting neither pays nor loses for certain"
        doubt = f"; {figures.doubt(found)}"
    return (
        f"{claim}: {names[0]} is {figures.times(found.speed.median)} as fast as {names[1]} "
        f"({figures.evidence(found)}{doubt})."
    )


def _winner(engine: str, schedules: Schedules) -> str:
    """The fastest schedule against each of the others, or between which it cannot be told."""
    first, *others = schedules.values()
    name = schedule_name(first, schedules)
    near, beaten = [], []
    for other in others:
        found = duel(first, other)
        than = f"{figures.times(found.speed.median)} as fast as {schedule_name(other, schedules)}"
        if found.verdict == "faster":
            beaten.append(f"{than} ({figures.evidence(found)})")
        else:
            near.append(f"{than} ({figures.evidence(found)}; {figures.doubt(found)})")
    if not near:
        return f"of the schedules {engine}, {name} wins: {figures.listed(beaten)}."
    behind = f"; but it is {figures.listed(beaten)}" if beaten else ""
    return f"of the schedules {engine}, none wins: {name} is {figures.listed(near)}{behind}."


def _split_and_whole(schedules: Schedules) -> tuple[Outcome, Outcome] | None:
    """The best split schedule and the best whole one, where there are both."""
    split = [outcome for name, outcome in schedules.items() if name in _SPLIT]
    whole = [outcome for name, outcome in schedules.items() if name not in _SPLIT]
    return (split[0], whole[0]) if split and whole else None


def _engine(outcome: Outcome) -> str:
    backend = outcome.contestant.settings.get("backend")
    where = "a CPU" if outcome.contestant.devices[0] == "cpu" else "GPUs"
    return f"{f'of {backend} ' if backend else ''}in {outcome.precision} on {where}"
