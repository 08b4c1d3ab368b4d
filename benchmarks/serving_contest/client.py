"""Clients' processes, and the process that runs the engine alone.

Each is a process of its own that waits, asleep, until it gets a turn over its pipe.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serving_contest.connection import AnswerError, Connection
from serving_contest.questions import Question

_PATIENCE = 600.0

Questions = Mapping[str, Sequence[Question]]
"""By contestant: what is sent in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What a process is asked to do.

    Attributes:
        key: which questions, or which engine.
        port: of the server; 0 for the engine alone.
        warm_up: requests that do not count.
        requests: requests that do.
    """

    key: str
    port: int
    warm_up: int
    requests: int


class TurnError(Exception):
    """A turn could not be taken to its end; the contestant is out."""


class Process:
    """A process that takes turns."""

    def __init__(self, work: Callable[..., None], *given: Any) -> None:
        """Start it; it works with its pipe and with what is given."""
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, *given), daemon=True)
        self._process.start()
        other.close()

    def send(self, message: object) -> None:
        """Hand it something."""
        self.pipe.send(message)

    def receive(self) -> Any:
        """What it says next.

        Raises:
            TurnError: it failed, or says nothing.
        """
        try:
            said = self.pipe.recv() if self.pipe.poll(_PATIENCE) else TurnError("no answer in time")
        except EOFError:
            said = TurnError("its process ended")
        if isinstance(said, TurnError):
            raise said
        return said

    def end(self) -> None:
        """End it."""
        self.pipe.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


class Crew:
    """Clients that ask at the same time, and the engine alone."""

    def __init__(self, clients: int, questions: Questions, engines: Mapping[str, Path]) -> None:
        """Start all processes, and wait until they are ready for a turn.

        Args:
            clients: how many there are at most.
            questions: what they may be told to ask.
            engines: by key: what may be run alone.

        Raises:
            TurnError: one of them does not start.
        """
        self._clients = [Process(ask_in_turns, questions, number) for number in range(clients)]
        self._alone = {key: Process(run_in_turns, path) for key, path in engines.items()}
        try:
            for process in self._all:
                process.receive()  # else its start would take time from the first turns
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End all processes."""
        self.end()

    @property
    def _all(self) -> tuple[Process, ...]:
        return (*self._clients, *self._alone.values())

    def end(self) -> None:
        """End all processes."""
        for process in self._all:
            process.end()

    def ask(self, turn: Turn, clients: int) -> list[int]:
        """Let clients ask at the same time, `turn.requests` in all.

        Returns:
            Nanoseconds of every request.

        Raises:
            TurnError: one of them got no answer, or a wrong one.
        """
        return _together(self._clients[:clients], turn, -(-turn.requests // clients))

    def run_alone(self, turn: Turn) -> list[int]:
        """Let the engine run; nanoseconds of every run.

        Raises:
            TurnError: it failed.
        """
        return _together([self._alone[turn.key]], turn, turn.requests)


def _together(processes: Sequence[Process], turn: Turn, each: int) -> list[int]:
    for process in processes:
        process.send(turn)
    for process in processes:  # all have warmed up
        process.receive()
    for process in processes:
        process.send(each)
    return [took for process in processes for took in process.receive()]


def ask_in_turns(pipe: Pipe, questions: Questions, number: int) -> None:
    """A client's process, which says first that it is ready.

    A `Turn`, what warms up, how many requests, their nanoseconds; again.
    """

    def take(turn: Turn) -> None:
        asked = questions[turn.key]
        with Connection(turn.port) as connection:

            def ask(count: int) -> list[int]:
                taken = []
                for index in range(number, number + count):
                    question = asked[index % len(asked)]
                    answer = connection.ask(question.request)
                    question.check(answer)
                    taken.append(answer.nanoseconds)
                return taken

            _warm_up_and_time(pipe, turn, ask)

    _serve(pipe, take)


def run_in_turns(pipe: Pipe, path: Path) -> None:
    """The engine's process: the same with runs in place of requests."""
    from parnet_deploy.bundle import open_engine_bundle
    from parnet_deploy.runtime import open_runner
    from serving_contest.network import open_engine, photographs

    bundle = open_engine_bundle(path)
    feeds = [
        {"images": array}
        for array in open_engine(path, photographs(bundle.manifest.preprocessing.size)).inputs
    ]
    runner = open_runner(bundle)

    def run(count: int) -> list[int]:
        taken = []
        for index in range(count):
            begin = time.perf_counter_ns()
            runner.run(feeds[index % len(feeds)])
            taken.append(time.perf_counter_ns() - begin)
        return taken

    _serve(pipe, lambda turn: _warm_up_and_time(pipe, turn, run))


def _warm_up_and_time(pipe: Pipe, turn: Turn, work: Callable[[int], list[int]]) -> None:
    work(turn.warm_up)
    pipe.send("ready")
    pipe.send(work(pipe.recv()))


def _serve(pipe: Pipe, take: Callable[[Turn], None]) -> None:
    pipe.send("ready")
    while True:
        try:
            turn = pipe.recv()
            if isinstance(turn, Turn):  # else the rest of a turn that failed
                take(turn)
        except (AnswerError, OSError, ValueError, KeyError) as exc:
            if isinstance(exc, EOFError):
                return
            pipe.send(TurnError(f"{type(exc).__name__}: {exc}"))
        except EOFError:
            return
