"""A CPU's figures, measured by a short probe: nobody prints them for the cores at hand."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np

from parnet_deploy.roofline.devices import Device, Link

_COPIED = 64 * 2**20  # bytes, more than most caches hold
_SIZE = 1024  # rows and columns of the matrices
_PROBES = 9


@functools.cache
def probe_cpu(name: str, cores: int) -> Device:
    """Measure memory bandwidth and the rate of float32 matrix products, with all cores.

    Each is the best of a few probes, since a peak is wanted and other work only makes it less;
    once per process. The bandwidth is that of a copy (bytes read and written), which one thread
    makes: numpy has no other. With fewer threads than cores (``OMP_NUM_THREADS``), or beside work
    that never rests, both are too low.

    Args:
        name: what the CPU is called.
        cores: how many there are to use.
    """
    return measure_cpu(name, cores, seconds_of=_least_seconds)


def measure_cpu(
    name: str, cores: int, *, seconds_of: Callable[[Callable[[], object]], float]
) -> Device:
    """The same with a clock of the caller's: a function from what is run to its seconds."""
    source, target = np.ones(_COPIED, np.uint8), np.empty(_COPIED, np.uint8)
    left = np.ones((_SIZE, _SIZE), np.float32)
    product = np.empty_like(left)
    copying = seconds_of(lambda: np.copyto(target, source))
    multiplying = seconds_of(lambda: np.matmul(left, left, out=product))
    nowhere = Link(bandwidth=float("inf"), latency=0.0)  # all of it is host memory
    rate = 2 * _SIZE**3 / multiplying
    return Device(
        name=f"{name}, {cores} core{'s' * (cores != 1)}",
        bandwidth=2 * _COPIED / copying,
        rates={"fp32": rate},
        launch=0.0,
        link=nowhere,
        host=nowhere,
        source="measured here: numpy's copy, and its float32 matrix product",
        measured=True,
    )


def _least_seconds(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(_PROBES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
