"""Which images are held out, where nobody has split them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence


def held_out(paths: Sequence[str], part: float) -> list[bool]:
    """Choose about `part` of a class's images by a hash of their paths.

    An image that is held out stays so when files are added or removed, on every machine. Of a class
    so small that the hash would take none or all of it, it is the image with the least hash that
    is held out, or the one with the greatest that is not.

    Args:
        paths: two or more, relative to the data set's folder.
        part: in (0, 1).

    Returns:
        For each path, whether it is held out: not all of them, and not none.
    """
    draws = [_draw(path) for path in paths]
    chosen = [draw < part for draw in draws]
    if not any(chosen):
        chosen[draws.index(min(draws))] = True
    if all(chosen):
        chosen[draws.index(max(draws))] = False
    return chosen


def _draw(path: str) -> float:
    """A number in [0, 1), evenly distributed over paths, always the same for one."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
