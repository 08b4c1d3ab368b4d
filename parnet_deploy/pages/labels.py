"""Where labels stand beside their points, so that none hides another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Point = tuple[float, float]

_DIRECTIONS = 16
_RINGS = 24


class Box(NamedTuple):
    """A rectangle, its sides parallel to the axes."""

    left: float
    bottom: float
    right: float
    top: float

    def touches(self, other: Box) -> bool:
        """Whether they have a point inside in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def inside(self, other: Box) -> bool:
        """Whether all of it lies in another."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top


def place(
    points: Sequence[Point], sizes: Sequence[Point], bounds: Box, *, gap: float
) -> list[Box | None]:
    """Put a label near each point, clear of all points and of the labels before it.

    Args:
        points: x and y.
        sizes: width and height of the points' labels.
        bounds: where labels may stand.
        gap: distance of a label from its point, at least; no label comes nearer to any.

    Returns:
        The labels' boxes, in order; None for one that there is no room for.
    """
    taken = [Box(x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y in points]
    found: list[Box | None] = []
    for point, size in zip(points, sizes, strict=True):
        free = (
            box
            for box in _around(point, size, gap)
            if box.inside(bounds) and not any(box.touches(other) for other in taken)
        )
        box = next(free, None)
        found.append(box)
        if box is not None:
            taken.append(box)
    return found


def _around(point: Point, size: Point, gap: float) -> Iterator[Box]:
    """Places for a label, the nearest first, and to the right before to the left."""
    (x, y), (width, height) = point, size
    for ring in range(_RINGS):
        reach = gap * (1 + ring) / 1.5
        for turn in range(_DIRECTIONS):
            # 0, +1, -1, +2, -2 ... sixteenths of a turn
            step = (turn + 1) // 2 * (1 if turn % 2 else -1)
            angle = 2 * math.pi * step / _DIRECTIONS
            # The label's own size is added, so that its nearest edge is as far away as asked for.
            middle_x = x + math.cos(angle) * (reach + width / 2)
            middle_y = y + math.sin(angle) * (reach + height / 2)
            yield Box(
                middle_x - width / 2,
                middle_y - height / 2,
                middle_x + width / 2,
                middle_y + height / 2,
            )
