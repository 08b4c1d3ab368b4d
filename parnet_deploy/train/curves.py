"""A training as a picture: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from parnet_deploy.train.files import replacing
from parnet_deploy.train.metrics import EpochMetrics

TRAIN = "#e0663b"
TEST = "#2f6fb7"
TEST_TOP5 = "#7fb0e6"
RATE = "#5a5a5a"

MARKED_EPOCHS = 30
"""With more epochs than these, a marker at each would make a line a smear."""

_STYLE: Any = {
    "svg.hashsalt": "parnet-deploy",  # the same training, the same bytes
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5a5a5a",
    "xtick.color": "#5a5a5a",
    "ytick.color": "#5a5a5a",
    "axes.labelcolor": "#303030",
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
}


def draw_curves(history: Sequence[EpochMetrics], path: Path, title: str) -> None:
    """Draw a training's losses, accuracies and learning rate over its epochs.

    Args:
        history: the epochs, in their order; at least one.
        path: where the SVG is to stand; what stands there is replaced. Equal arguments give equal
            bytes, with one version of matplotlib.
        title: what stands above it.

    Raises:
        TrainingError: it cannot be written.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 6.8), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        loss, accuracy, rate = figure.subplots(
            3, sharex=True, gridspec_kw={"height_ratios": (4, 4, 1.4)}
        )
        figure.suptitle(title, fontsize=11, x=0.016, ha="left")
        _draw_losses(loss, history)
        _draw_accuracies(accuracy, history)
        _draw_rate(rate, history)
        _share_epochs(rate, history)
        figure.align_ylabels()
        with replacing(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None, "Title": title})


def _draw_losses(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    _line(axes, history, [epoch.train_loss for epoch in history], TRAIN, "train")
    _line(axes, history, [epoch.test_loss for epoch in history], TEST, "test")
    axes.set_ylabel("loss")
    losses = [loss for epoch in history for loss in (epoch.train_loss, epoch.test_loss)]
    axes.set_ylim(0.0, 1.05 * max(filter(math.isfinite, losses), default=1.0) or 1.0)
    axes.grid()
    axes.legend(loc="upper right")


def _draw_accuracies(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    best = max(history, key=lambda epoch: epoch.test_top1)
    _line(axes, history, [epoch.test_top5 for epoch in history], TEST_TOP5, "test, top-5")
    _line(axes, history, [epoch.test_top1 for epoch in history], TEST, "test, top-1")
    _line(axes, history, [epoch.train_top1 for epoch in history], TRAIN, "train, top-1")
    axes.plot(
        [best.epoch],
        [best.test_top1],
        marker="o",
        markersize=8,
        markerfacecolor="none",
        markeredgecolor=TEST,
        markeredgewidth=1.2,
        ls="",
        label=f"best: {best.test_top1:.2%} (epoch {best.epoch})",
    )
    axes.set_ylabel("accuracy")
    if len(history) == 1:
        axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid()
    axes.legend(loc="lower right")


def _draw_rate(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    rates = [epoch.learning_rate for epoch in history]
    _line(axes, history, rates, RATE, "learning rate")
    lowest, highest = min(rates), max(rates)
    still = sum(a == b for a, b in pairwise(rates))
    # Steps by a tenth are steps only on a logarithmic axis; a cosine is one only on a linear one.
    if still >= len(rates) / 2 and 0.0 < 10 * lowest < highest:
        axes.set_yscale("log")
        axes.set_ylim(bottom=lowest / 3)
    else:
        axes.set_ylim(0.0, 1.15 * highest)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("epoch")
    axes.grid()


def _line(
    axes: Axes, history: Sequence[EpochMetrics], values: Sequence[float], colour: str, label: str
) -> None:
    marker = "o" if len(history) <= MARKED_EPOCHS else ""
    axes.plot([epoch.epoch for epoch in history], values, marker=marker, color=colour, label=label)


def _share_epochs(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    first, last = history[0].epoch, history[-1].epoch
    margin = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
