"""Where everything stands: a row per stream, a column per depth.

A block's column is its depth, so every way through the network runs from left to right and the
number above the last block is the network's depth. Units are pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parnet_deploy.diagram.picture import Picture, PictureStage
from parnet_deploy.spec import IMAGES, BlockSpec, ParNetSpec, depths, layout

BOX_WIDTH, BOX_HEIGHT = 80.0, 58.0
GAP = 32.0
CUT_GAP = 120.0
"""Between two columns: as a rule, and where the label of a cut stands in between."""

MARGIN = 36.0
TOP = 124.0
BAND_HEAD, BAND_FOOT = 30.0, 14.0
"""Room in a region above its boxes, for its name, and below them."""

ROW_GAP = 20.0
REGION_PAD = 12.0

Point = tuple[float, float]
Node = tuple[str, str]
"""A stage's name and a block's: a block that stands in several stages is drawn in each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A rectangle on the grid."""

    row: int
    column: int
    x: float
    y: float
    width: float = BOX_WIDTH
    height: float = BOX_HEIGHT

    @property
    def right(self) -> float:
        """Right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.y + self.height

    @property
    def middle(self) -> Point:
        """Centre."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A value on its way from where it is made to where it is read; the image has no maker."""

    value: str
    source: Node | None
    target: Node

    @property
    def is_cut(self) -> bool:
        """Whether it crosses from one stage to another."""
        return self.source is not None and self.source[0] != self.target[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """What a stage's region covers of one row."""

    row: int
    left: float
    right: float

    @property
    def top(self) -> float:
        """Upper edge."""
        return band_top(self.row)

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return band_top(self.row) + BAND_HEAD + BOX_HEIGHT + BAND_FOOT


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Everything's place.

    Attributes:
        blocks: the blocks by name.
        boxes: every block of every stage.
        image: the input.
        links: the ways between them.
        regions: each stage's, row by row from the top.
        columns: x of the middle of each depth's column, from 1.
        right: right end of the last column's boxes.
        bottom: lower end of the last row.
    """

    blocks: dict[str, BlockSpec]
    boxes: dict[Node, Box]
    image: Box
    links: tuple[Link, ...]
    regions: dict[str, tuple[Span, ...]]
    columns: tuple[float, ...]
    right: float
    bottom: float


def arrange(picture: Picture) -> Grid:
    """Give everything its place."""
    spec = picture.spec
    blocks = {block.name: block for block in layout(spec)}
    column_of = depths(spec)
    row_of = {
        (stage.name, name): row
        for stage in picture.stages
        for name, row in _rows(spec, stage).items()
    }
    links = tuple(_links(picture, blocks))
    x = _column_positions(links, row_of, column_of)
    boxes = {
        node: Box(row=row, column=column_of[node[1]], x=x[column_of[node[1]]], y=_box_top(row))
        for node, row in row_of.items()
    }
    first_rows = [boxes[link.target].row for link in links if link.source is None]
    image_y = (_box_top(min(first_rows)) + _box_top(max(first_rows))) / 2
    return Grid(
        blocks=blocks,
        boxes=boxes,
        image=Box(row=min(first_rows), column=0, x=x[0], y=image_y),
        links=links,
        regions={stage.name: _region(stage, boxes) for stage in picture.stages},
        columns=tuple(left + BOX_WIDTH / 2 for left in x[1:]),
        right=x[-1] + BOX_WIDTH,
        bottom=band_top(spec.streams) + BAND_HEAD + BOX_HEIGHT + BAND_FOOT,
    )


def band_top(row: int) -> float:
    """Upper edge of a row's band; rows count from 1."""
    return TOP + (row - 1) * (BAND_HEAD + BOX_HEIGHT + BAND_FOOT + ROW_GAP)


def _box_top(row: int) -> float:
    return band_top(row) + BAND_HEAD


def _rows(spec: ParNetSpec, stage: PictureStage) -> dict[str, int]:
    """The row of each of a stage's blocks: its stream's, all in one row in a stream's own stage."""
    natural = {name: _natural_row(spec, name) for name in stage.blocks}
    streams = {row for name, row in natural.items() if name.startswith("stream")}
    has_head = "head" in natural
    if len(streams) == 1 and not has_head:
        return dict.fromkeys(natural, streams.pop())
    return natural


def _natural_row(spec: ParNetSpec, name: str) -> int:
    if name.startswith("stem"):
        return max(1, int(name.removeprefix("stem")) - len(spec.stem_widths))
    if name.startswith(("stream", "merge")):
        return int(name.removeprefix("stream").removeprefix("merge").split("_")[0])
    return spec.streams


def _links(picture: Picture, blocks: dict[str, BlockSpec]) -> Iterator[Link]:
    """Every value's ways. A value is read from the stage's own block, where it has that block."""
    owners = {name: stage.name for stage in reversed(picture.stages) for name in stage.blocks}
    for stage in picture.stages:
        for name in stage.blocks:
            for value in blocks[name].inputs:
                owner = stage.name if value in stage.blocks else owners.get(value)
                source = None if value == IMAGES or owner is None else (owner, value)
                yield Link(value=value, source=source, target=(stage.name, name))


def _column_positions(
    links: tuple[Link, ...], row_of: dict[Node, int], column_of: dict[str, int]
) -> list[float]:
    """Left edge of every column, the image's first; wider apart where a cut's label stands."""
    wide = {
        column_of[link.target[1]]
        for link in links
        if link.is_cut and column_of[link.target[1]] == column_of[link.value] + 1
    }
    x = [MARGIN]
    for column in range(1, column_of["head"] + 1):
        gap = CUT_GAP if column in wide else GAP
        x.append(x[-1] + BOX_WIDTH + (gap if column > 1 else gap + REGION_PAD))
    return x


def _region(stage: PictureStage, boxes: dict[Node, Box]) -> tuple[Span, ...]:
    """What a stage covers: its own blocks' width in each row, and the ways between its rows.

    What holds the head ends straight, there. A whole network starts straight, too. A stem's way
    to the next row leaves from below the last block of the row above, and is covered with it.
    """
    own = [boxes[stage.name, name] for name in stage.blocks]
    has_stem, has_head = stage.blocks[0] == "stem1", "head" in stage.blocks
    spans: list[Span] = []
    above: list[Box] = []
    for row in sorted({box.row for box in own}):
        here = [box for box in own if box.row == row]
        starts = own if has_stem and has_head else [*here, *(above[-1:] if has_stem else [])]
        spans.append(
            Span(
                row=row,
                left=min(box.x for box in starts) - REGION_PAD,
                right=max(box.right for box in (own if has_head else here)) + REGION_PAD,
            )
        )
        above = here
    return tuple(spans)
