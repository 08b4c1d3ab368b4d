"""How near the answers are, beside how long they take."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from parnet_deploy.bench.report.plots import OURS, PEER, SMALLEST, WIDTH, colour_of, shorten, tick
from parnet_deploy.bench.result import Outcome, Parity
from parnet_deploy.pages.figure import INK, style, svg
from parnet_deploy.pages.labels import Box, place

_GAP = 7.0  # pixels between a point and its label


def parity(network: str, outcomes: Sequence[Outcome]) -> str | None:
    """Every contestant's greatest relative error beside its median latency.

    Args:
        network: its name.
        outcomes: its contestants'; those without parity are left out.

    Returns:
        SVG, or None where nobody's parity is known.
    """
    known = [(outcome, outcome.parity) for outcome in outcomes if outcome.parity is not None]
    if not known:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.6 + 0.12 * len(known)), layout="constrained")
        FigureCanvasAgg(figure)  # it knows how wide a text is
        axes = figure.subplots()
        axes.set_yscale("log")
        _draw_points(axes, known)
        _set_limits(axes, known)
        axes.set_xlabel("median latency, milliseconds")
        axes.set_ylabel("greatest relative error")
        axes.grid()
        for colour, whose in ((OURS, "ours"), (PEER, "peers")):
            axes.plot([], [], "o", color=colour, markersize=5, label=whose)
        figure.legend(loc="outside upper right", ncols=2)
        points = [(o.latency.p50, max(SMALLEST, found.max_rel)) for o, found in known]
        label_points(figure, axes, points, [shorten(o.contestant.name, 32) for o, _ in known])
        return svg(figure, f"{network}: parity beside latency")


def _draw_points(axes: Axes, known: Sequence[tuple[Outcome, Parity]]) -> None:
    for outcome, found in known:
        axes.plot(
            [outcome.latency.p50],
            [max(SMALLEST, found.max_rel)],
            marker="o" if found.same_top1 == found.images else "X",
            markersize=6,
            color=colour_of(outcome),
            ls="",
        )


def _set_limits(axes: Axes, known: Sequence[tuple[Outcome, Parity]]) -> None:
    """Room around the points for their labels."""
    times = [outcome.latency.p50 for outcome, _ in known]
    errors = [max(SMALLEST, found.max_rel) for _, found in known]
    low, high = min(times), max(times)
    if high > 3 * low:
        axes.set_xscale("log")
        room = (high / low) ** 0.15
        axes.set_xlim(low / room, high * room)
        tick(axes, low / room, high * room)
    else:
        room = 0.15 * (high - low) or 0.1 * high
        axes.set_xlim(low - room, high + room)
    axes.set_ylim(min(errors) / 30, max(errors) * 30)


def label_points(
    figure: Figure, axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]
) -> None:
    """Names beside points, joined to them where they could not stand next to them.

    Args:
        figure: with all its other parts.
        axes: with their limits.
        points: in the axes' units.
        names: one for each point.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    texts = [axes.text(0, 0, name, fontsize=7.5, va="bottom", parse_math=False) for name in names]
    extents = [text.get_window_extent() for text in texts]
    places = [tuple(axes.transData.transform(point)) for point in points]
    area = axes.get_window_extent()
    boxes = place(
        places,
        [(extent.width + _GAP, extent.height) for extent in extents],
        Box(area.x0 + 2, area.y0 + 2, area.x1 - 2, area.y1 - 2),
        gap=_GAP,
    )
    back = axes.transData.inverted()
    for text, point, box in zip(texts, places, boxes, strict=True):
        if box is None:
            text.remove()
            continue
        x, y = back.transform((box.left + _GAP / 2, box.bottom))
        text.set_position((float(x), float(y)))
        _join(axes, point, box)


def _join(axes: Axes, point: tuple[float, float], box: Box) -> None:
    """A line to a label that stands apart from its point."""
    near = min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top)
    distance = ((near[0] - point[0]) ** 2 + (near[1] - point[1]) ** 2) ** 0.5
    if distance <= 1.5 * _GAP:
        return
    back = axes.transData.inverted()
    ends = [back.transform(end) for end in (point, near)]
    axes.plot(*zip(*ends, strict=True), color=INK, linewidth=0.5, alpha=0.5)
