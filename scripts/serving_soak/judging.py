"""What must hold in the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from serving_soak.asking import HANG_UP
from serving_soak.client import Tally
from serving_soak.watching import Sample

WARM_UP = 0.2
"""Of the requests, in which memory may still grow."""

WINDOW = 0.2
"""Of the requests, in the first and the last window that are compared."""

MEMORY = 4 * 1024 * 1024
"""Bytes that the median may grow by. Between the windows of 100,000 requests lie 60,000: a leak of
70 bytes a request is seen."""

FILES = 4
THREADS = 1
REJECTED = "wrong request"


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Medians of the first window after the warm-up, and of the last one."""

    first: Sample
    last: Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What the server itself counted.

    Attributes:
        answered: requests with an answer of the model.
        in_flight: requests that it still works on, once all clients have gone.
        before: the server before the first request.
        after: the server when all clients have gone.
        status: its exit status after SIGTERM.
    """

    answered: int
    in_flight: int
    before: Sample
    after: Sample
    status: int


def growth_of(samples: Sequence[Sample], requests: int) -> Growth:
    """Compare two windows of a run.

    Raises:
        ValueError: one of them has no sample.
    """

    def window(begin: float) -> Sample:
        low, high = begin * requests, (begin + WINDOW) * requests
        inside = [s for s in samples if low <= s.requests <= high]
        if not inside:
            raise ValueError("no sample was taken in a window; the run was too short")
        return Sample(
            requests=int(low),
            memory=int(statistics.median(s.memory for s in inside)),
            files=int(statistics.median(s.files for s in inside)),
            threads=int(statistics.median(s.threads for s in inside)),
        )

    return Growth(first=window(WARM_UP), last=window(1 - WINDOW))


def faults_of(tally: Tally, requests: int, growth: Growth, counts: Counts) -> list[str]:
    """What does not hold, in sentences; empty where all does."""
    return [*_lost(tally, requests, counts), *_grown(growth, counts)]


def _lost(tally: Tally, requests: int, counts: Counts) -> list[str]:
    found = []
    asked = sum(tally.asked.values())
    if asked != requests:
        found.append(f"{asked} of {requests} requests were sent before the time was over")
    if tally.lost:
        found.append(f"{tally.lost} requests got no answer")
    if tally.wrong:
        found.append(f"{tally.wrong} answers were wrong, or another request's")
    ours = sum(n for kind, n in tally.right.items() if kind not in (REJECTED, HANG_UP))
    if not ours <= counts.answered <= ours + tally.left_whole:
        found.append(
            f"the server counts {counts.answered} answers, and its clients {ours} (and "
            f"{tally.left_whole} requests that they left when they were complete)"
        )
    if counts.in_flight:
        found.append(f"{counts.in_flight} requests are in flight when all clients have gone")
    if counts.status:
        found.append(f"the server ended with status {counts.status}")
    return found


def _grown(growth: Growth, counts: Counts) -> list[str]:
    found = []
    more = growth.last.memory - growth.first.memory
    if more > MEMORY:
        found.append(f"memory grew by {more / 2**20:.1f} MiB, of which {MEMORY >> 20} are allowed")
    for what, limit, pairs in (
        ("open files", FILES, [(growth.first.files, growth.last.files)]),
        ("threads", THREADS, [(growth.first.threads, growth.last.threads)]),
        (
            "open files when all clients have gone",
            FILES,
            [(counts.before.files, counts.after.files)],
        ),
    ):
        found += [f"{what}: {a}, then {b}" for a, b in pairs if b - a > limit]
    return found
