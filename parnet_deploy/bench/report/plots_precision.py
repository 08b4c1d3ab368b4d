"""Every precision: what is right of the answers, beside how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from parnet_deploy.bench.report.plots import WIDTH, colour_of, shorten, tick
from parnet_deploy.bench.report.plots_parity import label_points
from parnet_deploy.bench.report.precision_words import ORDER, name_of
from parnet_deploy.bench.result import Outcome
from parnet_deploy.pages.figure import INK, style, svg

MARKERS = {"fp32": "o", "tf32": "h", "fp16": "s", "bf16": "D", "int8": "^", "fp8": "v"}
"""Shapes by precision: colours say whose it is."""


class _Point(NamedTuple):
    outcome: Outcome
    share: float


def precisions(network: str, outcomes: Sequence[Outcome]) -> str | None:
    """Every contestant's accuracy, or agreement without labels, beside its median latency.

    Args:
        network: its name.
        outcomes: its contestants'; those without parity are left out.

    Returns:
        SVG, or None where fewer than two precisions are known.
    """
    points = [_Point(o, 100 * _share(o)) for o in outcomes if o.parity is not None]
    kinds = [kind for kind in ORDER if any(point.outcome.precision == kind for point in points)]
    if len({name_of(point.outcome) for point in points}) < 2:
        return None
    labelled = any(o.parity is not None and o.parity.accuracy is not None for o in outcomes)
    with style():
        figure = Figure(figsize=(WIDTH, 2.6 + 0.12 * len(points)), layout="constrained")
        FigureCanvasAgg(figure)  # it knows how wide a text is
        axes = figure.subplots()
        for outcome, share in points:
            _draw(axes, outcome, share)
        _set_limits(axes, points)
        if labelled:
            _draw_reference(axes, points)
        axes.set_xlabel("median latency, milliseconds")
        axes.set_ylabel("accuracy, %" if labelled else "the training form's top-1 class, %")
        axes.grid()
        handles = [
            Line2D([], [], marker=MARKERS[kind], color=INK, ls="", markersize=5, label=kind)
            for kind in kinds
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        names = [f"{shorten(point.outcome.contestant.name, 32)}" for point in points]
        label_points(figure, axes, [(p.outcome.latency.p50, p.share) for p in points], names)
        return svg(figure, f"{network}: precisions")


def _share(outcome: Outcome) -> float:
    """What is right of the images by their labels, else by the training form."""
    parity = outcome.parity
    if parity is None:
        return 0.0
    return parity.agreement if parity.accuracy is None else parity.accuracy


def _draw(axes: Axes, outcome: Outcome, share: float) -> None:
    """Who is wrong beyond the roundings of its precision is hollow."""
    colour = colour_of(outcome)
    axes.plot(
        [outcome.latency.p50],
        [share],
        marker=MARKERS.get(outcome.precision, "o"),
        markersize=6.5,
        color=colour,
        markerfacecolor=colour if outcome.right else "none",
        ls="",
    )


def _set_limits(axes: Axes, points: Sequence[_Point]) -> None:
    """Room around the points for their labels; no finer than a point."""
    times = [point.outcome.latency.p50 for point in points]
    shares = [point.share for point in points]
    low, high = min(times), max(times)
    if high > 3 * low:
        axes.set_xscale("log")
        room = (high / low) ** 0.18
        axes.set_xlim(low / room, high * room)
        tick(axes, low / room, high * room)
    else:
        room = 0.18 * (high - low) or 0.1 * high
        axes.set_xlim(low - room, high + room)
    spread = max(max(shares) - min(shares), 1.0)
    axes.set_ylim(min(shares) - 0.6 * spread, max(shares) + 0.6 * spread)
    axes.set_yticks([t for t in axes.get_yticks() if t <= 100 + 1e-9])
    axes.set_ylim(min(shares) - 0.6 * spread, max(shares) + 0.6 * spread)


def _draw_reference(axes: Axes, points: Sequence[_Point]) -> None:
    """The training form's accuracy as a line."""
    parity = points[0].outcome.parity
    if parity is not None and parity.reference_right is not None:
        level = 100 * parity.reference_right / parity.images
        axes.axhline(level, color=INK, linewidth=0.8, ls=":", alpha=0.4)
