"""A matplotlib figure as SVG that takes its text colour from the page around it."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Within it, figures are drawn as pages want them."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name in letters that matplotlib's font lacks: the viewer's own font has them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def svg(figure: Figure, title: str) -> str:
    """A figure as an ``<svg>`` element: the same bytes for the same figure.

    Args:
        figure: drawn within `style`.
        title: what it shows; another one for each figure of a page.
    """
    buffer = io.StringIO()
    metadata = {"Date": None, "Title": title}
    with mpl.rc_context({"svg.hashsalt": title}):  # names in two pictures of one page differ
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The picture is as wide as the page allows: a size of its own would fix it.
    head, _, rest = text.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head).replace("<svg", '<svg role="img"', 1)
    # What nothing refers to needs no name: matplotlib gives both pictures the same ones.
    used = set(re.findall(r"#([\w-]+)", rest))
    rest = re.sub(r' id="([^"]*)"', lambda m: m.group(0) if m.group(1) in used else "", rest)
    return f"{head}>{rest}"
