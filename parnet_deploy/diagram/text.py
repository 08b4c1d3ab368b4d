"""How wide a text is at most, without a font at hand.

The picture names several fonts, and whichever is installed is used. The widths here are those of
DejaVu Sans Bold, in thousandths of the font size and rounded up: the widest of them, so that what
fits by these numbers fits in every one.
"""

from __future__ import annotations

FONTS = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"

TIMES = "\N{MULTIPLICATION SIGN}"

_WIDTHS = {
    character: width
    for width, characters in {
        350: "'ijl ",
        400: "/\\|IJ,.·:;",
        460: "-f!()[]",
        500: "tr_`",
        600: '"*?zcs',
        690: "Lxvykae",
        700: "TEFo0123456789$",
        735: "hnu{}bdgpqSYZPC",
        775: "BRXAVK",
        840: f"UGDHN#+<=>^~{TIMES}",
    }.items()
    for character in characters
}
_OTHERS = 1110


def text_width(text: str, size: float) -> float:
    """An upper bound of a text's width, in the unit of the font's size."""
    return sum(_WIDTHS.get(character, _OTHERS) for character in text) * size / 1000


def shorten(text: str, size: float, width: float) -> str:
    """The text, or as much of its start as fits with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}…", size) > width:
        text = text[:-1].rstrip()
    return f"{text}…"
