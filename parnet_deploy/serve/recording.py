"""What happened to requests: what the data plane reports, in counts and sums of seconds.

`metrics` shows it to Prometheus, `statistics` to the protocol's clients.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from parnet_deploy.serve.engine.unanswered import FAILED, REJECTED, Reason
from parnet_deploy.serve.signature import Signature

BUCKETS = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of a histogram's buckets in seconds; beyond the last is one without a bound."""

_KEPT = 1024
"""Answers that are noted before they are counted: noting is all that a request has to wait for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What one request took, in seconds. What is left of the total is putting the answer down.

    Attributes:
        prepare: parsing, decoding and preprocessing, and waiting for a thread that does it.
        queue: waiting for the engine.
        infer: the engine's run, of the whole batch that the request was part of.
        total: from the body being there to the answer being ready.
    """

    prepare: float
    queue: float
    infer: float
    total: float

    @property
    def output(self) -> float:
        """From the end of the engine's run to the answer being ready."""
        return max(0.0, self.total - self.prepare - self.queue - self.infer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """What is so at one moment.

    Attributes:
        in_flight: requests that are neither answered nor refused yet.
        waiting: those of them that wait for the engine, or are being prepared for it.
        ready: whether the engine takes requests.
        engine_failures: how often it has failed.
    """

    in_flight: int = 0
    waiting: int = 0
    ready: bool = False
    engine_failures: int = 0


class Tally:
    """Durations: how many, and their sum in seconds."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        """Nothing yet."""
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.seconds += seconds


class Histogram(Tally):
    """Durations, and how many of them lie in each bucket (`BUCKETS`, and one beyond)."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__()
        self.buckets = [0] * (len(BUCKETS) + 1)

    def add(self, seconds: float) -> None:
        """One more."""
        super().add(seconds)
        self.buckets[bisect_left(BUCKETS, seconds)] += 1


class Recorder:
    """Counts what happened since the server began. Safe to use from any thread.

    Every request that the data plane is asked for ends in exactly one of `answered`, `refused` and
    `cancelled`. What is counted is looked at within `counted`.

    Attributes:
        signature: the model that requests are for.
        prepare, queue, infer, output, total: of answered requests.
        rejected_for: of requests turned away before the engine was asked.
        failed_for: of requests taken in and not answered.
        cancelled_ones: of requests whose client went away.
        images: images of answered requests.
        runs: of the engine, by its batch size.
        last: when a request was last answered: milliseconds since 1970.
    """

    def __init__(self, signature: Signature) -> None:
        """Nothing has happened yet."""
        self.signature = signature
        self._lock = threading.Lock()
        self._answers: deque[tuple[Timing, int, int]] = deque()
        self._runs: deque[tuple[int, float]] = deque()
        self.prepare = Histogram()
        self.queue = Histogram()
        self.infer = Histogram()
        self.output = Histogram()
        self.total = Histogram()
        self.rejected_for: dict[Reason, Tally] = {reason: Tally() for reason in REJECTED}
        self.failed_for: dict[Reason, Tally] = {reason: Tally() for reason in FAILED}
        self.cancelled_ones = Tally()
        self.images = 0
        self.runs: dict[int, Tally] = {}
        self.last = 0
        self._levels: Callable[[], Levels] = Levels

    def watch(self, levels: Callable[[], Levels]) -> None:
        """Ask this for what is so at the moment."""
        self._levels = levels

    def levels(self) -> Levels:
        """What is so at the moment."""
        return self._levels()

    def answered(self, timing: Timing, images: int) -> None:
        """A request of so many images was answered."""
        self._answers.append((timing, images, time.time_ns()))
        if len(self._answers) > _KEPT:
            with self._lock:
                self._count_notes()

    def refused(self, reason: Reason, seconds: float) -> None:
        """A request got an error, after so many seconds."""
        tallies = self.rejected_for if reason in REJECTED else self.failed_for
        with self._lock:
            tallies[reason].add(seconds)

    def cancelled(self, seconds: float) -> None:
        """A request's client went away, after so many seconds."""
        with self._lock:
            self.cancelled_ones.add(seconds)

    def ran(self, batch: int, seconds: float) -> None:
        """The engine ran a batch."""
        self._runs.append((batch, seconds))
        if len(self._runs) > _KEPT:
            with self._lock:
                self._count_notes()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside the block everything that has happened is counted, and nothing changes."""
        with self._lock:
            self._count_notes()
            yield

    def _count_notes(self) -> None:
        """Count what was only noted; the lock is held."""
        while self._answers:
            self._count(*self._answers.popleft())
        while self._runs:
            batch, seconds = self._runs.popleft()
            self.runs.setdefault(batch, Tally()).add(seconds)

    def _count(self, timing: Timing, images: int, when: int) -> None:
        self.prepare.add(timing.prepare)
        self.queue.add(timing.queue)
        self.infer.add(timing.infer)
        self.output.add(timing.output)
        self.total.add(timing.total)
        self.images += images
        self.last = when // 1_000_000
