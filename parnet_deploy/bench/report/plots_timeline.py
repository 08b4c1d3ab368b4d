"""When each stage of a run worked: what overlaps stands above each other."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parnet_deploy.bench.report import figures
from parnet_deploy.bench.report.overlap import COPIES, overlap
from parnet_deploy.bench.report.plots import WIDTH, shorten
from parnet_deploy.bench.result import Outcome
from parnet_deploy.pages.figure import style, svg
from parnet_deploy.runtime.timeline import Span

_DEVICES = ("#e0663b", "#4c8dd6", "#3aa655", "#b05fc4", "#c9a227", "#22a7b8")
_COPY = "#8a8a8a"
_LANE = 0.23  # inches
_HEAD = 0.36


def timelines(network: str, outcomes: Sequence[Outcome]) -> str | None:
    """One run of every contestant that can tell its stages apart, a lane for each stage.

    Args:
        network: its name.
        outcomes: its contestants'; those without a timeline are left out.

    Returns:
        SVG, or None where nobody has a timeline.
    """
    told = [outcome for outcome in outcomes if outcome.timeline]
    if not told:
        return None
    lanes = [_lanes(outcome.timeline) for outcome in told]
    devices = sorted({span.device for outcome in told for span in outcome.timeline})
    heights = [_HEAD + _LANE * len(each) for each in lanes]
    with style():
        figure = Figure(figsize=(WIDTH, 0.6 + sum(heights)), layout="constrained")
        every = figure.subplots(
            len(told), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0]
        end = 1000 * max(span.end for outcome in told for span in outcome.timeline)
        for axes, outcome, names in zip(every, told, lanes, strict=True):
            _draw_run(axes, outcome, names, devices, end)
        every[-1].set_xlabel("milliseconds after the run began")
        _explain(figure, every[0], told, devices)
        return svg(figure, f"{network}: timeline of the stages")


def _lanes(spans: Sequence[Span]) -> list[tuple[str, str]]:
    """Stage and device of each lane, in the order in which they start."""
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    return list(dict.fromkeys((span.stage, span.device) for span in ordered))


def _draw_run(
    axes: Axes,
    outcome: Outcome,
    lanes: Sequence[tuple[str, str]],
    devices: Sequence[str],
    end: float,
) -> None:
    share = figures.percent(overlap(outcome.timeline))
    name = shorten(outcome.contestant.name, 34)
    title = f"{name}: stages overlap in {share}" if len(lanes) > 1 else name
    axes.set_title(title, fontsize=8, loc="left", parse_math=False)
    for span in outcome.timeline:
        lane = lanes.index((span.stage, span.device))
        start, length = 1000 * span.start, 1000 * (span.end - span.start)
        colour = _COPY if span.stage in COPIES else _colour(span.device, devices)
        axes.barh(lane, length, left=start, height=0.66, color=colour)
        _say_length(axes, lane, start, length, end)
    axes.set_yticks(range(len(lanes)), [stage for stage, _ in lanes], fontsize=8, parse_math=False)
    axes.set_ylim(len(lanes) - 0.45, -0.55)
    axes.set_xlim(0, end * 1.02)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _say_length(axes: Axes, lane: int, start: float, length: float, end: float) -> None:
    """A span's length beside its bar, on the side where there is more room."""
    words = figures.milliseconds(length)
    if start > end - (start + length):
        axes.text(start - 0.008 * end, lane, words, va="center", ha="right", fontsize=7)
    else:
        axes.text(start + length + 0.008 * end, lane, words, va="center", fontsize=7)


def _explain(figure: Figure, axes: Axes, told: Sequence[Outcome], devices: Sequence[str]) -> None:
    colours = {device: _colour(device, devices) for device in devices}
    if any(span.stage in COPIES for outcome in told for span in outcome.timeline):
        colours["copies"] = _COPY
    for name, colour in colours.items():
        axes.barh([0], [0], color=colour, label=name)
    figure.legend(loc="outside upper right", ncols=min(4, len(colours)))


def _colour(device: str, devices: Sequence[str]) -> str:
    return _DEVICES[devices.index(device) % len(_DEVICES)]
