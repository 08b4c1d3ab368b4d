"""A short probe of the CPU, in a process of its own: ``python -m parnet_deploy.roofline.probe``.

It prints two numbers of seconds as JSON: of a copy, and of a matrix product.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

COPIED = 64 * 2**20
"""Bytes that are copied, more than most caches hold."""

SIZE = 1024
"""Rows and columns of the float32 matrices."""

_PROBES = 9

SecondsOf = Callable[[Callable[[], object]], float]


def least_seconds(run: Callable[[], object]) -> float:
    """The best of a few runs: a peak is wanted, and other work only makes it less."""
    run()
    seconds = []
    for _ in range(_PROBES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def probe(seconds_of: SecondsOf = least_seconds) -> tuple[float, float]:
    """Seconds of a copy of `COPIED` bytes, and of a product of two `SIZE` matrices.

    Args:
        seconds_of: the clock: from what is run to its seconds.
    """
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    left = np.ones((SIZE, SIZE), np.float32)
    product = np.empty_like(left)
    copying = seconds_of(lambda: np.copyto(target, source))
    return copying, seconds_of(lambda: np.matmul(left, left, out=product))


if __name__ == "__main__":
    json.dump(probe(), sys.stdout)
