"""Plots of a verification, as SVG that takes its text colour from the page around it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parnet_deploy.pages.figure import INK, style, svg
from parnet_deploy.verify.judge import block_limit
from parnet_deploy.verify.result import Against, RungResult, Verification
from parnet_deploy.verify.tolerances import RUNGS

COLOURS = ("#8a8a8a", "#4c8dd6", "#e0663b", "#3aa655", "#c9a227", "#b05fc4", "#22a7b8")
"""One a rung; each can be told from white and from black."""

MARKERS = ("o", "o", "s", "D", "^", "v", "P")

FLOOR = 1e-17
"""Where an error of 0 stands on a logarithmic axis."""


def rung_errors(verification: Verification) -> str:
    """Every rung's error, against the rung before it and against the first, and what is allowed."""
    rungs = [rung for rung in verification.rungs if rung.first is not None]
    with style():
        figure = Figure(figsize=(8.6, 0.5 + 0.42 * max(2, len(rungs))), layout="constrained")
        axes = figure.subplots()
        for row, rung in enumerate(rungs):
            _draw_rung(axes, row, rung)
        axes.set_xscale("log")
        axes.set_xlim(FLOOR / 3, 10)
        axes.set_yticks(range(len(rungs)), [rung.name for rung in rungs])
        axes.set_ylim(len(rungs) - 0.4, -0.6)
        axes.set_xlabel("greatest relative error (0 stands at the left edge)")
        axes.grid(axis="x")
        if rungs:
            handles, labels = axes.get_legend_handles_labels()
            unique = dict(zip(labels, handles, strict=True))
            figure.legend(
                unique.values(), unique.keys(), loc="outside upper center", ncols=len(unique)
            )
        return svg(figure, "Relative error of every rung")


def block_errors(verification: Verification, blocks: Sequence[str]) -> str:
    """Every block's error against the first rung, one line a rung.

    Args:
        verification: what was found.
        blocks: names of the blocks, in the order in which they are computed.
    """
    with style():
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.subplots()
        for rung in verification.rungs:
            if rung.first is not None:
                _draw_blocks(axes, rung, rung.first, blocks)
        axes.set_yscale("log")
        axes.set_ylim(FLOOR / 3, 10)
        axes.set_xticks(range(len(blocks)), blocks, rotation=60, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(blocks) - 0.4)
        axes.set_ylabel("greatest relative error of the block's values")
        axes.grid()
        if axes.lines:
            figure.legend(loc="outside upper center", ncols=4)
        return svg(figure, "Relative error block by block")


def _draw_rung(axes: Axes, row: int, rung: RungResult) -> None:
    colour = COLOURS[RUNGS.index(rung.name)]
    axes.plot(
        [rung.tolerance or FLOOR],
        [row],
        marker="|",
        markersize=16,
        color=INK,
        ls="",
        label="allowed",
    )
    for against, filled, label in (
        (rung.first, True, "against the first rung"),
        (rung.before, False, "against the rung before"),
    ):
        error = None if against is None else against.comparison.max_rel
        axes.plot(
            [FLOOR if error is None else max(FLOOR, error)],
            [row],
            marker="x" if error is None else "o",
            markersize=6 if filled else 11,
            color=colour if filled else "none",
            markeredgecolor=colour,
            ls="",
            label=label,
        )


def _draw_blocks(axes: Axes, rung: RungResult, first: Against, blocks: Sequence[str]) -> None:
    index = RUNGS.index(rung.name)
    greatest: dict[str, float] = {}
    for error in first.blocks:
        value = 1.0 if error.max_rel is None else error.max_rel
        greatest[error.block] = max(greatest.get(error.block, 0.0), value)
    seen = [(x, greatest[name]) for x, name in enumerate(blocks) if name in greatest]
    if not seen:
        return
    axes.plot(
        [x for x, _ in seen],
        [max(FLOOR, value) for _, value in seen],
        color=COLOURS[index],
        marker=MARKERS[index],
        markersize=11 - index,  # lines that lie on one another show as rings
        markerfacecolor="none",
        linewidth=1.2,
        label=rung.name,
    )
    axes.axhline(
        block_limit(rung.tolerance), color=COLOURS[index], linewidth=0.8, ls=":", alpha=0.7
    )
