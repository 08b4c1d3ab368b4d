"""The picture of a quantisation report, as SVG that takes its text colour from the page."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from parnet_deploy.pages.figure import INK, style, svg
from parnet_deploy.quantise.kernels import KernelNoise
from parnet_deploy.quantise.result import LayerReport, QuantisationReport
from parnet_deploy.quantise.sensitivity import noise
from parnet_deploy.spec.ranges import reach

DENSE, POINTWISE, FOLDED = "#4c8dd6", "#3aa655", "#e0663b"
QUIET, TO_BLAME, KEPT = "#8a8a8a", "#e0663b", "#c9a227"
"""Each can be told from white and from black."""

_ROW = 0.36  # inches
_THIRD = 0.26  # of a row: the height of one kernel's bar


def layers(report: QuantisationReport) -> str:
    """Every layer's kernels, what it reads, and what it costs alone: a row each.

    Args:
        report: what was found.
    """
    rows = report.layers
    with style():
        figure = Figure(figsize=(8.6, 1.5 + _ROW * len(rows)), layout="constrained")
        kernels, ranges, costs = figure.subplots(1, 3, sharey=True, width_ratios=(5, 4, 4))
        _draw_kernels(kernels, rows)
        _draw_ranges(ranges, rows)
        _draw_costs(costs, report)
        kernels.set_yticks(range(len(rows)), [layer.block for layer in rows], fontsize=8)
        for label, layer in zip(kernels.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if _is_blamed(report, layer) else "normal")
        kernels.set_ylim(len(rows) - 0.4, -0.6)
        for axes in (ranges, costs):
            axes.tick_params(left=False)
        for axes in (kernels, ranges, costs):
            axes.grid(axis="x")
            axes.set_axisbelow(True)
        figure.legend(handles=_legend(), loc="outside upper center", ncols=4, fontsize=8)
        return svg(figure, f"{report.name}: what {report.precision} does to every layer")


def _draw_kernels(axes: Axes, rows: Sequence[LayerReport]) -> None:
    greatest = 0.0
    for row, layer in enumerate(rows):
        if layer.kernels is None:
            continue
        parts = (layer.kernels.dense, layer.kernels.pointwise, layer.kernels.folded)
        colours = (DENSE, POINTWISE, FOLDED)
        for place, (kernel, colour) in enumerate(zip(parts, colours, strict=True)):
            if kernel is not None:
                y = row + (place - 1) * _THIRD
                greatest = max(greatest, _draw_kernel(axes, y, kernel, colour))
    axes.set_xlim(0, 1.08 * greatest or 1)
    axes.set_xlabel("weights: signal to noise, dB")


def _draw_kernel(axes: Axes, y: float, kernel: KernelNoise, colour: str) -> float:
    """A bar to what a scale for each channel gives, and a stroke where one for all is."""
    per_channel, per_tensor = kernel.per_channel or 0.0, kernel.per_tensor or 0.0
    axes.barh(y, per_channel, height=_THIRD, color=colour, alpha=0.8, linewidth=0)
    if kernel.per_tensor is not None:
        half = _THIRD / 2
        axes.vlines(per_tensor, y - half, y + half, color=INK, linewidth=1.6)
    return max(per_channel, per_tensor)


def _draw_ranges(axes: Axes, rows: Sequence[LayerReport]) -> None:
    for row, layer in enumerate(rows):
        seen = layer.activation
        axes.hlines(row, seen.low, seen.high, color=QUIET, linewidth=1.2)
        axes.plot([seen.low, seen.high], [row, row], "|", color=QUIET, markersize=8)
        if seen.quantiser is not None:
            kept = reach(seen.quantiser)
            low, high = max(kept.low, seen.low), min(kept.high, seen.high)
            axes.hlines(row, low, high, color=DENSE, linewidth=4.5)
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.6)
    axes.set_xlabel("what it reads: values seen, and kept")


def _draw_costs(axes: Axes, report: QuantisationReport) -> None:
    greatest = 0.0
    for row, layer in enumerate(report.layers):
        if layer.alone is None:
            axes.text(0, row, " kept", va="center", fontsize=8)
            continue
        height = 100 * noise(layer.alone) ** 0.5
        greatest = max(greatest, height)
        colour = KEPT if layer.kept else TO_BLAME if _is_blamed(report, layer) else QUIET
        axes.barh(row, height, height=0.66, color=colour, alpha=0.85, linewidth=0)
        others = round((1 - layer.alone.agreement) * report.images)
        if others:
            axes.text(height, row, f" {others}", va="center", fontsize=8)
    axes.set_xlim(0, 1.15 * greatest or 1)
    axes.set_xlabel("it alone: noise in the logits, %")


def _is_blamed(report: QuantisationReport, layer: LayerReport) -> bool:
    return any(each.block == layer.block for each in report.blamed)


def _legend() -> list[Patch | Line2D]:
    return [
        Patch(color=DENSE, label="dense kernel"),
        Patch(color=POINTWISE, label="pointwise kernel"),
        Patch(color=FOLDED, label="folded kernel"),
        Line2D([], [], color=INK, marker="|", ls="", markersize=8, label="one scale for all"),
        Patch(color=TO_BLAME, label="half of the noise"),
        Patch(color=KEPT, label="kept"),
        Line2D([], [], color=QUIET, label="range seen"),
        Line2D([], [], color=DENSE, linewidth=4.5, label="range quantised"),
    ]
