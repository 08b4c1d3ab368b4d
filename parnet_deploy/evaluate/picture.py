"""The confusion matrix as a picture: a row per true class, a column per predicted class."""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parnet_deploy.evaluate.result import Evaluation

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched and copied
    "svg.hashsalt": "confusion",  # the same matrix, the same file
    "font.family": "sans-serif",
    "text.parse_math": False,  # a class may be called $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.spines.left": False,
}
_LONGEST = 24
"""Letters of a class name that are shown."""

_DARK = 0.55
"""From this share of a row on, a cell's figure is white."""


def draw(found: Evaluation) -> str:
    """The picture, as SVG.

    A cell's shade is its share of its row's images; empty cells are 0. On the right stands which
    share of every class was recognised.

    Args:
        found: an evaluation with a confusion matrix.

    Raises:
        ValueError: it has none, as there are too many classes.
    """
    if found.measures.confusion is None:
        raise ValueError("this evaluation has no confusion matrix")
    counts = np.array(found.measures.confusion)
    side = 0.24 if len(counts) > 20 else 0.45  # inches of a cell
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A class name in letters that matplotlib's font lacks: the viewer's own font has them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        size = max(5.0, 2.4 + side * len(counts)), max(3.2, 2.0 + side * len(counts))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        _draw_cells(axes, counts, size=6 if len(counts) > 20 else 9)
        _name_classes(axes, found, size=7 if len(counts) > 20 else 9)
        figure.suptitle(_title(found), fontsize=10)
        buffer = io.StringIO()
        metadata = {"Date": None, "Title": f"Confusion matrix of {found.path}"}
        figure.savefig(buffer, format="svg", facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _draw_cells(axes: Axes, counts: np.ndarray, *, size: int) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.argwhere(counts):
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shares[row, column] > _DARK else "black",
        )
    edges = np.arange(len(counts) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="#d0d0d0", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def _name_classes(axes: Axes, found: Evaluation, *, size: int) -> None:
    classes = found.measures.classes
    names = [_short(result.label) for result in classes]
    places = range(len(classes))
    axes.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.text(len(classes) - 0.3, -0.9, "right", va="center", fontsize=size)
    for place, result in enumerate(classes):
        if result.percent is not None:
            share = f"{result.percent:.0f} %"
            axes.text(len(classes) - 0.3, place, share, va="center", fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _title(found: Evaluation) -> str:
    top1 = found.measures.top1
    what = f"{top1.percent:.2f} % of {top1.images} images right"
    return f"{what}\n{_short(found.data)}, {found.split} split"


def _short(name: str) -> str:
    """A long name without its middle: names often differ at the end."""
    if len(name) <= _LONGEST:
        return name
    end = (_LONGEST - 1) // 2
    return f"{name[: _LONGEST - 1 - end]}…{name[-end:]}"
