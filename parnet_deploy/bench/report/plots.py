"""Plots of a benchmark, as SVG that can be read on a telephone as well."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from parnet_deploy.bench.contest.holding import share_out
from parnet_deploy.bench.report import figures
from parnet_deploy.bench.result import Outcome
from parnet_deploy.pages.figure import INK, style, svg

Numbers = NDArray[np.float64]

OURS, PEER = "#e0663b", "#4c8dd6"
"""Each can be told from white and from black."""

SMALLEST = 1e-17
"""Where an error of 0 stands on a logarithmic axis."""

WIDTH = 4.4
"""Inches. So narrow that its letters are readable where it fills a telephone."""

_BINS = 400
_LOGARITHMIC = 3.0  # from this ratio of the longest to the shortest on
_ROW = 0.46  # inches
_LETTERS = 36  # of a name that stands above a row, with figures beside it
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


def latencies(network: str, outcomes: Sequence[Outcome]) -> str:
    """How every contestant's latencies are distributed: a row each, median and p99 marked.

    Args:
        network: its name.
        outcomes: its contestants', the fastest first.
    """
    with style():
        figure, axes = _rows(outcomes)
        low = min(outcome.latency.minimum for outcome in outcomes)
        high = max(outcome.latency.p99 for outcome in outcomes)
        if high / low > _LOGARITHMIC:
            axes.set_xscale("log")
        edges = _edges(low, high, logarithmic=high / low > _LOGARITHMIC)
        for row, outcome in enumerate(outcomes):
            _draw_distribution(axes, row, outcome, edges)
            latency = outcome.latency
            p50, p99 = figures.milliseconds(latency.p50), figures.milliseconds(latency.p99)
            _name_row(axes, row, outcome, f"{p50}, p99 {p99}")
        axes.set_xlim(edges[0], edges[-1])
        tick(axes, edges[0], edges[-1])
        axes.set_xlabel("milliseconds, from host memory to host memory")
        axes.grid(axis="x")
        return svg(figure, f"{network}: latencies")


def rounds(network: str, outcomes: Sequence[Outcome], reference: Outcome, processes: int) -> str:
    """Every contestant's ratio to the reference, round by round, around its own median.

    Args:
        network: its name.
        outcomes: its contestants', the fastest first.
        reference: whose latencies the ratios are taken to.
        processes: how often each contestant was started.
    """
    base = np.array([np.median(each) for each in reference.rounds])
    away = []
    for outcome in outcomes:
        ratios = np.array([np.median(each) for each in outcome.rounds]) / base
        away.append(ratios / np.median(ratios) - 1)
    furthest = float(max(np.abs(each).max() for each in away))
    scale = next((step for step in _STEPS if furthest <= step), _STEPS[-1])
    with style():
        figure, axes = _rows(outcomes)
        for row, (outcome, each) in enumerate(zip(outcomes, away, strict=True)):
            _draw_rounds(axes, row, outcome, each / scale)
            ratio = outcome.ratio
            _name_row(
                axes, row, outcome, f"{figures.factor(ratio.median)} ({figures.quartiles(ratio)})"
            )
        count = len(base)
        for start in np.cumsum(share_out(count, processes))[:-1]:
            axes.axvline(start + 0.5, color=INK, linewidth=0.6, ls=":", alpha=0.6)
        axes.set_xlim(0.4, count + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel(f"round; a row is {figures.percent(scale)} high above and below its median")
        return svg(figure, f"{network}: ratios round by round")


def _rows(outcomes: Sequence[Outcome]) -> tuple[Figure, Axes]:
    """A figure with a row for each contestant, the first at the top."""
    figure = Figure(figsize=(WIDTH, 0.55 + _ROW * len(outcomes)), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(len(outcomes) - 0.4, -0.62)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    return figure, axes


def _name_row(axes: Axes, row: int, outcome: Outcome, figure: str) -> None:
    """A row's name above it on the left, its figures on the right."""
    place = axes.get_yaxis_transform()
    name = shorten(outcome.contestant.name, _LETTERS)
    weight = "bold" if outcome.contestant.group == "ours" else "normal"
    axes.text(
        0,
        row - 0.34,
        name,
        va="center",
        fontsize=8,
        weight=weight,
        transform=place,
        parse_math=False,
    )
    axes.text(1, row - 0.34, figure, va="center", ha="right", fontsize=8, transform=place)


def _draw_distribution(axes: Axes, row: int, outcome: Outcome, edges: Numbers) -> None:
    every = np.concatenate([np.asarray(each) for each in outcome.rounds])
    density = _density(every[every <= outcome.latency.p99], edges)
    colour = colour_of(outcome)
    floor = row + 0.3
    heights = floor - 0.46 * density / density.max()
    axes.stairs(heights, edges, baseline=floor, fill=True, color=colour, alpha=0.75)
    axes.hlines(floor, edges[0], edges[-1], color=INK, linewidth=0.4, alpha=0.4)
    latency = outcome.latency
    axes.vlines(latency.p50, floor - 0.5, floor + 0.06, color=INK, linewidth=1.2)
    axes.vlines(latency.p99, floor - 0.2, floor + 0.06, color=colour, linewidth=1.2)


def _density(values: Numbers, edges: Numbers) -> Numbers:
    """How densely values lie, bin by bin, smoothed as Silverman's rule has it.

    Args:
        values: at least one of them in a bin.
        edges: of bins that are equally wide on the axis; where it is logarithmic, so are they.
    """
    counts, _ = np.histogram(values, edges)
    places = np.repeat(np.arange(len(counts)), counts)
    low, high = np.percentile(places, (25, 75))
    width = max(1.0, 0.9 * min(places.std(), (high - low) / 1.34) * len(places) ** -0.2)
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    smooth: Numbers = np.convolve(counts, kernel, mode="full")
    return smooth[len(reach) // 2 :][: len(counts)]


def _draw_rounds(axes: Axes, row: int, outcome: Outcome, away: Numbers) -> None:
    middle, half = row + 0.1, 0.24
    places = np.arange(1, len(away) + 1)
    shown = middle - half * np.clip(away, -1, 1)
    colour = colour_of(outcome)
    axes.axhline(middle, color=INK, linewidth=0.4, alpha=0.4)
    axes.plot(places, shown, color=colour, linewidth=0.8, alpha=0.6)
    beyond = np.abs(away) > 1
    axes.plot(places[~beyond], shown[~beyond], "o", color=colour, markersize=3.2)
    axes.plot(places[beyond], shown[beyond], "x", color=colour, markersize=5)


def _edges(low: float, high: float, *, logarithmic: bool) -> Numbers:
    """Borders of the bins, with a little room on both sides."""
    if logarithmic:
        room = (high / low) ** 0.03
        return np.geomspace(low / room, high * room, _BINS + 1)
    room = 0.03 * (high - low) or 0.01 * high
    return np.linspace(low - room, high + room, _BINS + 1)


def tick(axes: Axes, low: float, high: float) -> None:
    """On a logarithmic axis of less than a decade or two, ticks at short numbers."""
    if axes.get_xscale() != "log":
        return
    ticks = short_numbers(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def short_numbers(low: float, high: float) -> list[float]:
    """At least three numbers of few digits between two positive ones, where they are not near."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 4, 5, 7),
        [n / 10 for n in range(10, 100)],
    ):
        found = [
            float(f"{digit * 10.0**decade:.3g}")
            for decade in decades
            for digit in digits
            if low <= digit * 10.0**decade <= high
        ]
        if len(found) >= 3:
            break
    return found[:: max(1, len(found) // 6)]


def colour_of(outcome: Outcome) -> str:
    """Ours or a peer's."""
    return OURS if outcome.contestant.group == "ours" else PEER


def shorten(name: str, letters: int) -> str:
    """A long name without its middle: names often differ at the end."""
    if len(name) <= letters:
        return name
    end = (letters - 1) // 2
    return f"{name[: letters - 1 - end]}…{name[-end:]}"
