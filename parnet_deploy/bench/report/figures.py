"""Figures of a benchmark as people read them, the same in the table, the words and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from parnet_deploy.bench.report.duel import FEWEST_ROUNDS, Duel
from parnet_deploy.bench.result import Conditions
from parnet_deploy.bench.statistics import Ratio
from parnet_deploy.pages.sheet import NONE

_MEBI = 2**20


def milliseconds(value: float) -> str:
    """A latency with four digits that mean something: ``0.1424``, ``6.503``, ``61.64``."""
    if value >= 1000:
        return f"{value:.0f}"
    for limit, digits in ((100, 1), (10, 2), (1, 3)):
        if value >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def times(value: float) -> str:
    """A factor: ``1.20 times``, ``12.3 times``."""
    return f"{value:.2f} times" if value < 10 else f"{value:.1f} times"


def quartiles(ratio: Ratio) -> str:
    """A ratio's quartiles: ``0.973-1.010``."""
    return f"{factor(ratio.low)}-{factor(ratio.high)}"


def factor(value: float) -> str:
    """A ratio: ``0.973``, ``46.1``."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def rate(value: float) -> str:
    """Images per second, three digits or more: ``16.2``, ``7042``."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def mebibytes(size: int | None) -> str:
    """A number of bytes in MiB, without the unit."""
    return NONE if size is None else f"{size / _MEBI:.0f}"


def error(value: float) -> str:
    """A relative error: ``1.2e-07``, and 0 where there is none."""
    return "0" if value == 0.0 else f"{value:.1e}"


def accuracy(share: float | None) -> str:
    """A share of images in percent, without the unit: ``97.3``."""
    return NONE if share is None else f"{100 * share:.1f}"


def evidence(found: Duel) -> str:
    """What a claim rests on: the quartiles, and in how many rounds it was so."""
    ahead = "ahead " if found.verdict == "undecided" else ""
    rounds = f"{ahead}in {found.won} of {found.won + found.lost} rounds"
    return f"quartiles {quartiles(found.speed)}, {rounds}"


def doubt(found: Duel) -> str:
    """Why a duel is undecided."""
    if found.too_short:
        return f"too few rounds to tell: it takes {FEWEST_ROUNDS}"
    if found.speed.low <= 1 <= found.speed.high:
        return "within the spread"
    return "in too few of the rounds to be sure"


def percent(share: float) -> str:
    """A share: ``19 %``."""
    return f"{100 * share:.0f} %"


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them: ``a, b and c``.

    Raises:
        ValueError: there are none.
    """
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def machine(conditions: Conditions) -> str:
    """The hardware in a few words: ``AMD EPYC 9454, 48 cores; 3 NVIDIA H200``."""
    cpu, *gpus = conditions.hardware
    return "; ".join([_short(cpu), *_counted(map(_short, gpus))])


def hardware(devices: Iterable[str], conditions: Conditions) -> str:
    """What devices are: the conditions' first line is the CPU, the others are GPUs in order."""
    cpu, *gpus = map(_short, conditions.hardware)
    names = []
    for device in devices:
        number = device.partition(":")[2]
        known = number.isdigit() and int(number) < len(gpus)
        names.append(gpus[int(number)] if known else cpu if device == "cpu" else device)
    return ", ".join(_counted(names))


def _short(line: str) -> str:
    """A line of hardware without what stands in brackets at its end."""
    return line.partition(" (")[0]


def _counted(names: Iterable[str]) -> list[str]:
    """Each name once, with how often it is there."""
    return [f"{n} {name}" if n > 1 else name for name, n in Counter(names).items()]
