"""Very many paths."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np


class Paths:
    """Paths below one folder, kept in two arrays.

    Worker processes share the arrays' memory with the process that made them. A million strings
    would be copied into every worker, as counting who uses them writes to each.
    """

    __slots__ = ("_bytes", "_ends", "root")

    def __init__(self, root: str, below: Iterable[str]) -> None:
        """Keep `below`: paths relative to `root`."""
        ended = os.fsencode("".join(f"{path}\0" for path in below))  # no path has a NUL in it
        self.root = root
        self._bytes = np.frombuffer(ended, np.uint8)
        self._ends = np.concatenate(([-1], np.flatnonzero(self._bytes == 0)))

    def __len__(self) -> int:
        """Number of paths."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        """The whole path, with its root."""
        place = range(len(self))[index]  # negative ones count from the end; IndexError beyond
        below = self._bytes[self._ends[place] + 1 : self._ends[place + 1]].tobytes()
        return f"{self.root}/{os.fsdecode(below)}"
