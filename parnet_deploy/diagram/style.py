"""Colours, for light and dark surroundings.

The picture paints its own ground, so that it can be read wherever it is put. A viewer that says
that its user prefers dark gets the second palette.
"""

from __future__ import annotations

from dataclasses import dataclass

from parnet_deploy.diagram.text import FONTS

KINDS = {
    "image": "#64748b",
    "skip": "#2563c9",
    "plain": "#d97706",
    "fusion": "#7c3aed",
    "pointwise": "#0d9488",
    "head": "#be185d",
}
"""Colour of a block's edge, by its kind; told apart by lightness too, and named in the legend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """One set of colours. `tints` are the regions' fill and edge."""

    ground: str
    box: str
    box_edge: str
    text: str
    muted: str
    way: str
    cut: str
    badge: str
    badge_text: str
    tints: dict[str, tuple[str, str]]


LIGHT = Palette(
    ground="#ffffff",
    box="#ffffff",
    box_edge="#c3ccd7",
    text="#17212e",
    muted="#566375",
    way="#64748b",
    cut="#b42318",
    badge="#b42318",
    badge_text="#ffffff",
    tints={
        "whole": ("#f3f6f9", "#c5d0dc"),
        "stem": ("#eceff4", "#bcc7d4"),
        "stream1": ("#e7f0fd", "#a8c6f0"),
        "stream2": ("#e6f6ec", "#9fd3b2"),
        "stream3": ("#fff3dd", "#ebcb8b"),
        "stream4": ("#fdeaf1", "#e8b3cb"),
        "fusion": ("#f1ebfd", "#c6b0ee"),
    },
)
DARK = Palette(
    ground="#0f151d",
    box="#1a2430",
    box_edge="#435263",
    text="#e8eef5",
    muted="#a3b1c1",
    way="#93a3b5",
    cut="#ff8f80",
    badge="#ff8f80",
    badge_text="#210a07",
    tints={
        "whole": ("#141d27", "#33414f"),
        "stem": ("#18212c", "#3a4858"),
        "stream1": ("#12233a", "#2d4f80"),
        "stream2": ("#11291d", "#2c6444"),
        "stream3": ("#2c220e", "#72591f"),
        "stream4": ("#2e1621", "#793d58"),
        "fusion": ("#211737", "#563f8a"),
    },
)


def tint_of(stage: str) -> str:
    """The name of a stage's tint; a stage that has none of its own looks like a whole network."""
    return stage if stage in LIGHT.tints else "whole"


def css() -> str:
    """The picture's style sheet."""
    return (
        f".parnet text{{font-family:{FONTS};font-size:11px}}"
        ".parnet .title{font-size:22px;font-weight:700}"
        ".parnet .subtitle{font-size:13px}"
        ".parnet .stage{font-size:13px;font-weight:700}"
        ".parnet .note{font-size:12px}"
        ".parnet .name{font-weight:700}"
        ".parnet .cut-label{font-weight:700}"
        ".parnet .region{stroke-width:1.25}"
        ".parnet .box{stroke-width:1}"
        ".parnet .box.repeated{stroke-dasharray:4 3}"
        ".parnet .faded{opacity:.5}"
        ".parnet .way{fill:none;stroke-width:1.5}"
        ".parnet .cut{fill:none;stroke-width:2.25}"
        + "".join(f".parnet .{kind}{{fill:{colour}}}" for kind, colour in KINDS.items())
        + _colours(LIGHT)
        + f"@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"
    )


def _colours(palette: Palette) -> str:
    rules = {
        ".ground": f"fill:{palette.ground}",
        ".box": f"fill:{palette.box};stroke:{palette.box_edge}",
        ".box.repeated": f"stroke:{palette.way}",
        "text": f"fill:{palette.text}",
        ".muted": f"fill:{palette.muted}",
        ".tick": f"stroke:{palette.box_edge}",
        ".way": f"stroke:{palette.way}",
        ".way-head": f"fill:{palette.way}",
        ".cut": f"stroke:{palette.cut}",
        ".cut-head": f"fill:{palette.cut}",
        ".pill": f"fill:{palette.ground};stroke:{palette.cut}",
        ".cut-label": f"fill:{palette.cut}",
        ".badge": f"fill:{palette.badge}",
        ".badge-text": f"fill:{palette.badge_text};font-weight:700",
    } | {
        f".tint-{name}": f"fill:{fill};stroke:{edge}"
        for name, (fill, edge) in palette.tints.items()
    }
    return "".join(f".parnet {selector}{{{rule}}}" for selector, rule in rules.items())
