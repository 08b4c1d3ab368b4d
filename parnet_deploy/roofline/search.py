"""The best placement of stages on devices, found by trying every one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from parnet_deploy.errors import UsageError
from parnet_deploy.roofline.latency import Schedule, Work, lower_bound, simulate

MAX_DEVICES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A placement and what it is expected to take."""

    placement: Mapping[str, str]
    schedule: Schedule

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that are used, in the order of the stages."""
        return tuple(dict.fromkeys(self.placement.values()))


def best_placement(work: Work, *, spread: Sequence[str] = ()) -> Placed:
    """The placement with the least latency; of equal ones, that with the fewest devices.

    Devices of equal figures are interchangeable, so of the placements that differ by nothing else
    only the first is tried: with 6 stages on 8 equal devices, 203 instead of 262144.

    Args:
        work: stages, sizes and devices.
        spread: stages that are to stand on as many different devices as there are, or as there
            are such stages. Without it, devices may be left unused where that is faster.

    Raises:
        UsageError: there is no device, or there are more than 8.
    """
    names = list(work.devices)
    if not 1 <= len(names) <= MAX_DEVICES:
        raise UsageError(f"stages are placed on 1 to {MAX_DEVICES} devices, not {len(names)}")
    at_least = min(len(spread), len(names))
    best: list[Placed] = []  # the last is the best so far
    for placement in _placements([task.name for task in work.tasks], work):
        if len({placement[stage] for stage in spread}) < at_least:
            continue
        if best and lower_bound(work, placement) > best[-1].schedule.latency:
            continue
        found = Placed(placement=placement, schedule=simulate(work, placement))
        if not best or _rank(found) < _rank(best[-1]):
            best.append(found)
    return best[-1]


def _rank(placed: Placed) -> tuple[float, int]:
    return placed.schedule.latency, len(placed.devices)


def _placements(stages: Sequence[str], work: Work) -> Iterator[dict[str, str]]:
    """All placements, but for those that only swap devices of equal figures."""
    names = list(work.devices)
    kinds = {name: [n for n in names if _equal(work, name, n)] for name in names}

    def extend(placed: dict[str, str]) -> Iterator[dict[str, str]]:
        if len(placed) == len(stages):
            yield dict(placed)
            return
        used = set(placed.values())
        fresh: set[str] = set()
        for name in names:
            if name not in used:  # of unused equal ones, only the first
                if kinds[name][0] in fresh:
                    continue
                fresh.add(kinds[name][0])
            yield from extend({**placed, stages[len(placed)]: name})

    return extend({})


def _equal(work: Work, one: str, other: str) -> bool:
    loads = all(task.loads[one] == task.loads[other] for task in work.tasks)
    return loads and work.devices[one] == work.devices[other]
