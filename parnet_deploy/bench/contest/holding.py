"""The contest: every contestant in a process of its own, interleaved turn by turn."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from parnet_deploy.bench.contest.messages import Assignment, Finished, Opened, Turn, Turned
from parnet_deploy.bench.contest.process import answers_file, worker_of
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.result import Absence, Settings
from parnet_deploy.errors import RunnerError, UsageError

Progress = Callable[[str], None]


class Worker(Protocol):
    """What holds a contestant. It rests from the end of `open` and of every turn on."""

    def open(self) -> tuple[Opened, float]:
        """Start; what it says, and the seconds until its first answer."""
        ...

    def turn(self, turn: Turn) -> Turned:
        """Take a turn."""
        ...

    def finish(self) -> Finished:
        """End, and tell what is told at the end."""
        ...

    def kill(self) -> None:
        """End at once; a second call does nothing."""
        ...


@dataclass(kw_only=True, slots=True)
class Record:
    """What a contestant did, as it grows.

    Attributes:
        contestant: who.
        answers: ``.npy`` file of its answers to all images.
        opened: what its last process said when it was opened.
        rounds: latencies in milliseconds, round by round.
        compute: milliseconds of compute alone, round by round, where its runner can tell.
        first_answer: seconds to the first answer, process by process.
        finished: what its last process told at the end.
    """

    contestant: Contestant
    answers: Path
    opened: Opened | None = None
    rounds: list[tuple[float, ...]] = field(default_factory=list)
    compute: list[tuple[float, ...]] = field(default_factory=list)
    first_answer: list[float] = field(default_factory=list)
    finished: Finished | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Who took part to the end, in the order in which they were named, and who did not."""

    records: tuple[Record, ...]
    absent: tuple[Absence, ...]


def hold_contest(
    contestants: Sequence[Contestant],
    settings: Settings,
    folder: Path,
    *,
    employ: Callable[[Assignment], Worker] = worker_of,
    progress: Progress = lambda step: None,
) -> Contest:
    """Measure contestants in one interleaved run.

    At every moment at most one of them runs. In each round all of one network take a turn, in an
    order that is shuffled anew. The networks follow each other, in shuffled order as well, each
    time the contestants are started anew: no more of them are held in memory than are compared.
    Who fails is left out, with the reason; the others go on.

    Args:
        contestants: no two of one network have the same name.
        settings: how many rounds, and how long.
        folder: for the contestants' answers.
        employ: makes what holds a contestant.
        progress: called with a line at each step.

    Raises:
        UsageError: two contestants of a network have one name, or there is no contestant.
    """
    keys = [contestant.key for contestant in contestants]
    if not keys or len(set(keys)) < len(keys):
        raise UsageError(f"contestants need different names, not {keys}")
    records = {
        contestant.key: Record(contestant=contestant, answers=answers_file(folder, number))
        for number, contestant in enumerate(contestants)
    }
    contest = _Contest(records, settings, employ, progress)
    for rounds in share_out(settings.rounds, settings.processes):
        for network in contest.shuffled_networks():
            contest.hold(network, rounds)
    return Contest(records=tuple(records.values()), absent=tuple(contest.absent))


def share_out(rounds: int, processes: int) -> tuple[int, ...]:
    """Rounds divided among processes, the larger shares first; none is empty."""
    shares = min(rounds, processes)
    least, more = divmod(rounds, shares)
    return (least + 1,) * more + (least,) * (shares - more)


def turn_of(settings: Settings) -> Turn:
    """One of a contestant's turns, so that all of them reach what is asked for."""
    return Turn(
        warm_up=settings.warm_up,
        warm_up_seconds=settings.warm_up_seconds,
        iterations=-(-settings.iterations // settings.rounds),
        seconds=settings.seconds / settings.rounds,
    )


class _Contest:
    """A contest while it is held."""

    def __init__(
        self,
        records: dict[str, Record],
        settings: Settings,
        employ: Callable[[Assignment], Worker],
        progress: Progress,
    ) -> None:
        self._records = records
        self._settings = settings
        self._employ = employ
        self._progress = progress
        self._random = random.Random(settings.seed)  # noqa: S311 - an order, not a secret
        self._round: Counter[str] = Counter()
        self.absent: list[Absence] = []

    def shuffled_networks(self) -> list[str]:
        """The networks of those who are left, in an order of their own."""
        networks = list(dict.fromkeys(r.contestant.network for r in self._records.values()))
        return self._random.sample(networks, len(networks))

    def hold(self, network: str, rounds: int) -> None:
        """Start everybody of a network who is left, let them take turns, and end them."""
        with contextlib.ExitStack() as ending:
            workers: dict[str, Worker] = {}
            for key in self._shuffled(network):
                worker = self._employ(self._assignment(key))
                ending.callback(worker.kill)
                if self._open(key, worker):
                    workers[key] = worker
            begin = time.monotonic()
            for done in range(rounds):
                self._round[network] += 1
                self._progress(self._which(network, done, rounds, time.monotonic() - begin))
                for key in self._shuffled(network):
                    self._take_turn(key, workers[key])
            for key in self._shuffled(network):
                self._finish(key, workers[key])

    def _which(self, network: str, done: int, rounds: int, seconds: float) -> str:
        """``round 3 of 12: l, about 80 s left``: of these contestants, as the first rounds went."""
        which = f"round {self._round[network]} of {self._settings.rounds}: {network}"
        left = seconds / done * (rounds - done) if done else 0.0
        return f"{which}, about {left:.0f} s left" if left >= 1 else which

    def _shuffled(self, network: str) -> list[str]:
        keys = [key for key, r in self._records.items() if r.contestant.network == network]
        return self._random.sample(keys, len(keys))

    def _assignment(self, key: str) -> Assignment:
        record = self._records[key]
        return Assignment(
            contestant=record.contestant, batch=self._settings.batch, answers=str(record.answers)
        )

    def _open(self, key: str, worker: Worker) -> bool:
        self._progress(f"open: {key}")
        record = self._records[key]
        try:
            opened, seconds = worker.open()
        except RunnerError as exc:
            self._leave_out(key, exc)
            return False
        record.opened = opened
        record.first_answer.append(seconds)
        return True

    def _take_turn(self, key: str, worker: Worker) -> None:
        try:
            turned = worker.turn(turn_of(self._settings))
        except RunnerError as exc:
            self._leave_out(key, exc)
            return
        record = self._records[key]
        record.rounds.append(turned.latencies)
        if turned.compute:
            record.compute.append(turned.compute)

    def _finish(self, key: str, worker: Worker) -> None:
        try:
            self._records[key].finished = worker.finish()
        except RunnerError as exc:
            self._leave_out(key, exc)

    def _leave_out(self, key: str, exc: RunnerError) -> None:
        contestant = self._records.pop(key).contestant
        absence = Absence(name=contestant.name, network=contestant.network, reason=str(exc))
        self.absent.append(absence)
        self._progress(f"left out: {key}: {exc}")
