"""Who takes a turn when, and what each turn took."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from serving_contest.client import Turn, TurnError
from serving_contest.questions import Question

Item = TypeVar("Item")

METHOD = 2
"""Rounds that were measured another way do not belong to these: 2, all processes are new in every
round, and have started before its first turn."""

ENGINE = "engine"
"""The contestant that is no server: the engine's own runs."""

Figures = dict[str, float]
"""Milliseconds of one turn: ``p50``, ``p90``, ``p99``, ``max``; of servers also ``processor``: what
they compute for one request."""

Round = dict[str, dict[str, Figures]]
"""By group (``fp32, 4 clients``) and contestant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A contestant.

    Attributes:
        body: what is sent: ``fp32``, ``uint8`` or ``jpeg``.
        name: the server's and the route's.
        server: which server it asks.
        questions: what it is asked in turn.
    """

    body: str
    name: str
    server: str
    questions: tuple[Question, ...]

    @property
    def key(self) -> str:
        """Its name among all."""
        return f"{self.body}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: in each, all take their turns in an order of its own.
        requests: of a turn, from all clients together.
        warm_up: requests of each client in front of them, which do not count.
        clients: numbers of clients at the same time.
    """

    rounds: int
    requests: int
    warm_up: int
    clients: tuple[int, ...]


class Serving(Protocol):
    """A server as rounds need it."""

    port: int

    def processor_seconds(self) -> float:
        """What it has computed so far."""
        ...

    def awake(self) -> AbstractContextManager[object]:
        """Inside the block it runs."""
        ...


class Asking(Protocol):
    """Clients as rounds need them."""

    def ask(self, turn: Turn, clients: int) -> list[int]:
        """Let clients ask; nanoseconds."""
        ...

    def run_alone(self, turn: Turn) -> list[int]:
        """Let the engine run; nanoseconds."""
        ...


Gather = Callable[[], AbstractContextManager[tuple[Mapping[str, Serving], Asking]]]
"""Starts servers, at rest, and clients; ends them behind the block."""


@dataclass(kw_only=True, slots=True)
class Contest:
    """What was measured, kept in a file from one round to the next.

    Attributes:
        file: where.
        rounds: as they were.
        out: contestants that failed, and why.
    """

    file: Path
    rounds: list[Round] = field(default_factory=list)
    out: dict[str, str] = field(default_factory=dict)

    def load(self, mark: str) -> None:
        """Take over what was measured before under the same conditions."""
        if self.file.is_file():
            found = json.loads(self.file.read_text())
            if found["mark"] == mark:
                self.rounds, self.out = found["rounds"], found["out"]

    def save(self, mark: str) -> None:
        """Keep what was measured, and under which conditions."""
        text = json.dumps({"mark": mark, "rounds": self.rounds, "out": self.out})
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)


def hold(
    contest: Contest,
    plan: Plan,
    entries: Sequence[Entry],
    gather: Gather,
    mark: str,
) -> None:
    """Measure the rounds that are missing.

    At every moment one server at most runs. Who answers wrong, or not at all, is out. In every
    round all processes are new ones: where its memory happens to lie stays with a process, and
    may make it slower or faster than its like.

    Args:
        contest: with the rounds that are there; the others are added.
        plan: how much is measured.
        entries: who takes part.
        gather: starts servers and clients; called once in a round.
        mark: the conditions, kept with the rounds.
    """
    while len(contest.rounds) < plan.rounds:
        rng = random.Random(len(contest.rounds))
        with gather() as (servers, crew):
            measured = _round(contest, plan, entries, servers, crew, rng)
        contest.rounds.append(measured)
        contest.save(mark)
        print(f"round {len(contest.rounds)} of {plan.rounds}", file=sys.stderr)


def _round(
    contest: Contest,
    plan: Plan,
    entries: Sequence[Entry],
    servers: Mapping[str, Serving],
    crew: Asking,
    rng: random.Random,
) -> Round:
    measured: Round = {}
    groups = [(b, n) for b in dict.fromkeys(e.body for e in entries) for n in plan.clients]
    for body, clients in _shuffled(rng, groups):
        turns = [e for e in entries if e.body == body and e.key not in contest.out]
        figures: dict[str, Figures] = {}
        for entry in _shuffled(rng, [None, *turns]):
            name = ENGINE if entry is None else entry.name
            try:
                figures[name] = _take(entry, body, clients, plan, servers, crew)
            except TurnError as exc:
                contest.out[f"{body}/{name}"] = str(exc)
                print(f"{body}/{name} is out: {exc}", file=sys.stderr)
        measured[group_name(body, clients)] = figures
    return measured


def group_name(body: str, clients: int) -> str:
    """What is compared with each other: one body from so many clients."""
    return f"{body}, {clients} client{'s' if clients > 1 else ''}"


def figures_of(nanoseconds: Sequence[int]) -> Figures:
    """A turn's figures in milliseconds."""
    taken = np.asarray(nanoseconds) / 1e6
    p50, p90, p99 = np.percentile(taken, (50, 90, 99))
    figures = {"p50": p50, "p90": p90, "p99": p99, "max": taken.max()}
    return {name: round(float(value), 4) for name, value in figures.items()}


def conditions(plan: Plan, **more: object) -> str:
    """What rounds that belong together have in common."""
    return json.dumps(
        {**asdict(plan), "rounds": None, "method": METHOD, **more}, sort_keys=True, default=str
    )


def _take(
    entry: Entry | None,
    body: str,
    clients: int,
    plan: Plan,
    servers: Mapping[str, Serving],
    crew: Asking,
) -> Figures:
    if entry is None:
        turn = Turn(key=body, port=0, warm_up=plan.warm_up, requests=plan.requests)
        return figures_of(crew.run_alone(turn))
    server = servers[entry.server]
    turn = Turn(key=entry.key, port=server.port, warm_up=plan.warm_up, requests=plan.requests)
    before = server.processor_seconds()
    with server.awake():
        figures = figures_of(crew.ask(turn, clients))
    computed = server.processor_seconds() - before
    answered = clients * (plan.warm_up + -(-plan.requests // clients))
    return {**figures, "processor": round(1000 * computed / answered, 4)}


def _shuffled(rng: random.Random, items: Sequence[Item]) -> list[Item]:
    return rng.sample(items, len(items))
