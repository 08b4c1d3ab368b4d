"""Timing runs, and the memory they take."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from parnet_deploy.bench.contest.messages import Turn, Turned
from parnet_deploy.runtime import Runner
from parnet_deploy.runtime.timeline import TimesCompute
from parnet_deploy.spec import Array

COMPUTE_SHARE = 4
"""Compute alone is timed in one run for every so many that are timed end to end."""

STATUS = Path("/proc/self/status")


def take_turn(
    runner: Runner,
    feeds: Mapping[str, Array],
    turn: Turn,
    clock: Callable[[], float] = time.perf_counter,
) -> Turned:
    """Run a runner for a turn.

    Every run is synchronous: it begins with arrays in host memory and ends with new ones there.

    Args:
        runner: what is timed.
        feeds: what it is fed.
        turn: how long.
        clock: seconds, never going back.

    Raises:
        RunnerError: a run failed.
    """
    begin, warmed = clock(), 0
    while warmed < turn.warm_up or clock() - begin < turn.warm_up_seconds:
        runner.run(feeds)
        warmed += 1
    latencies: list[float] = []
    begin = clock()
    while len(latencies) < turn.iterations or clock() - begin < turn.seconds:
        start = clock()
        runner.run(feeds)
        latencies.append(_milliseconds(clock() - start))
    compute: list[float] = []
    if isinstance(runner, TimesCompute):
        count = -(-len(latencies) // COMPUTE_SHARE)
        compute = [_milliseconds(runner.time_compute(feeds)) for _ in range(count)]
    return Turned(latencies=tuple(latencies), compute=tuple(compute))


def _milliseconds(seconds: float) -> float:
    """To a tenth of a microsecond, which is finer than any clock here; longer ones fill files."""
    return round(1000 * seconds, 4)


def peak_memory(status: Path = STATUS) -> int:
    """The greatest resident memory of this process so far, in bytes.

    Args:
        status: where Linux tells it; elsewhere the system's own accounting stands in, which on
            some systems counts what the process was before it became this program.
    """
    try:
        lines = status.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
