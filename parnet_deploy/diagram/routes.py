"""The ways between blocks, as points, and the outline of a region."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from parnet_deploy.diagram.grid import Box, Grid, Link, Point, Span

_TRUNK = 16.0
"""From the image's right edge to where its ways part, and from where ways join to the head."""


def route(grid: Grid, link: Link) -> tuple[Point, ...]:
    """The corners of a way, from its start to its end.

    Along a row it is straight. A fusion's second input comes from above. What an ensemble's head
    reads from above comes down before it. A stem's way to a lower row leaves its block below.
    """
    target = grid.boxes[link.target]
    if link.source is None:
        return _from_image(grid.image, target)
    source = grid.boxes[link.source]
    (source_x, source_y), (target_x, target_y) = source.middle, target.middle
    if source.row == target.row:
        return (source.right, source_y), (target.x, target_y)
    if grid.blocks[link.target[1]].kind == "fusion":
        return (source.right, source_y), (target_x, source_y), (target_x, target.y)
    if grid.blocks[link.target[1]].kind == "head":
        x = target.x - _TRUNK
        return (source.right, source_y), (x, source_y), (x, target_y), (target.x, target_y)
    return (source_x, source.bottom), (source_x, target_y), (target.x, target_y)


def label_point(corners: Sequence[Point]) -> Point:
    """Where a cut's label stands: the middle of the first horizontal piece of its way."""
    for (x1, y1), (x2, y2) in pairwise(corners):
        if y1 == y2:
            return (x1 + x2) / 2, y1
    return corners[0]


def outline(spans: Sequence[Span]) -> tuple[Point, ...]:
    """The corners of a region, clockwise.

    Where it gets narrower it does so above the gap between the rows, where it gets wider below
    it: so neighbours keep their distance.
    """
    right: list[Point] = []
    left: list[Point] = []
    for above, below in pairwise(spans):
        if above.right != below.right:
            y = above.bottom if below.right < above.right else below.top
            right += [(above.right, y), (below.right, y)]
        if above.left != below.left:
            y = above.bottom if below.left > above.left else below.top
            left += [(above.left, y), (below.left, y)]
    first, last = spans[0], spans[-1]
    return (
        (first.left, first.top),
        (first.right, first.top),
        *right,
        (last.right, last.bottom),
        (last.left, last.bottom),
        *reversed(left),
    )


def _from_image(image: Box, target: Box) -> tuple[Point, ...]:
    x, y = image.right + _TRUNK, image.middle[1]
    if target.middle[1] == y:
        return (image.right, y), (target.x, y)
    return (image.right, y), (x, y), (x, target.middle[1]), (target.x, target.middle[1])
