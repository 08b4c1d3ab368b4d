"""Faults, sent to a server; what came of each, and what is wrong with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from serving_faults.fault import Fault
from serving_faults.http import http_faults
from serving_faults.model import Model
from serving_faults.pictures import picture_faults
from serving_faults.servers import Server
from serving_faults.tensors import tensor_faults
from serving_faults.wire import Answer, Connection, WireError

MOST_MEMORY = 96 << 20
"""Bytes by which a fault may raise a server's memory at most, for however short a time: some
copies of the largest body that is let in (16 MiB), and a hundredth of what the bombs hold."""

_INTERNALS = ("Traceback", "site-packages", ".py", "0x7f")

Start = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What came of a fault.

    Attributes:
        title: the fault's.
        group: its part of the list.
        expected: what is right, in words.
        measured: what happened, in words.
        wrong: what is wrong with it, in words; empty where nothing is.
    """

    title: str
    group: str
    expected: str
    measured: str
    wrong: str = ""


def all_faults() -> tuple[Fault, ...]:
    """Every fault that is one request."""
    return (*tensor_faults(), *http_faults(), *picture_faults())


class Checker:
    """Sends faults to a server, and starts another one where it died.

    Attributes:
        deaths: how many did.
    """

    def __init__(self, start: Start, model: Model, *, sentences: bool) -> None:
        """Nothing is started yet.

        Args:
            start: starts a server.
            model: what it serves.
            sentences: whether every refusal has to be ``{"error": "a sentence"}``.
        """
        self._start = start
        self._model = model
        self._sentences = sentences
        self._opened = contextlib.ExitStack()
        self._server: Server | None = None
        self.deaths = 0

    def close(self) -> None:
        """Stop the server."""
        self._server = None
        self._opened.close()

    @property
    def server(self) -> Server:
        """The one that runs now, which has answered a good request."""
        if self._server is None:
            self._server = self._opened.enter_context(self._start())
            if problem := self._model.good_problem(self._server.port):
                raise WireError(f"before any fault: {problem}")
        return self._server

    def check(self, fault: Fault) -> Finding:
        """Send a fault, and look at what came of it."""
        server = self.server
        before = server.memory()
        server.forget_peak()
        answer, problem = self._sent(fault, server)
        measured = _words(answer, problem)
        wrong = problem or self._judged(fault, answer)
        aftermath = self._aftermath(server)
        rise = max(0, server.peak() - before)
        if aftermath:
            self.deaths += 1
            self.close()
        elif rise > MOST_MEMORY:
            aftermath = f"its memory rose by {rise >> 20} MiB"
        elif fault.weighed:
            measured += f", {rise >> 20} MiB on top"
        return Finding(
            title=fault.title,
            group=fault.group,
            expected=fault.expected,
            measured="; ".join(filter(None, (measured, aftermath))),
            wrong="; ".join(filter(None, (wrong, aftermath))),
        )

    def _sent(self, fault: Fault, server: Server) -> tuple[Answer | None, str]:
        try:
            with Connection(server.port) as connection:
                connection.send(fault.sends(self._model))
                return connection.answer(fault.method), ""
        except (WireError, OSError) as exc:
            return None, str(exc)

    def _judged(self, fault: Fault, answer: Answer | None) -> str:
        status = 0 if answer is None else answer.status
        if status not in fault.right:
            return f"{fault.expected} is right"
        if answer is None or fault.method == "HEAD":
            return ""
        if status == 200:
            return "" if fault.judge is None else fault.judge(self._model, answer)
        return refusal_problem(answer) if self._sentences else ""

    def _aftermath(self, server: Server) -> str:
        """What is wrong with a server afterwards."""
        with contextlib.suppress(OSError, WireError):
            problem = self._model.good_problem(server.port)
            if not problem and server.status_of("/v2/health/ready") == 200:
                return ""
        return _how_it_is(server)


def check_all(checker: Checker, *, everybody: bool = False) -> Iterator[Finding]:
    """Every fault's finding.

    Args:
        checker: sends them.
        everybody: leave out those that have a meaning for our server only.
    """
    for fault in all_faults():
        if not (everybody and fault.alone):
            yield checker.check(fault)


def refusal_problem(answer: Answer) -> str:
    """What is wrong with a refusal: it is JSON with one sentence that gives nothing away."""
    sentence = answer.error
    if answer.headers.get("content-type") != "application/json" or sentence is None:
        return "its body is not an error in JSON"
    if found := [each for each in _INTERNALS if each in sentence]:
        return f"its sentence has internals in it ({found[0]})"
    return ""


def _words(answer: Answer | None, problem: str) -> str:
    if problem:
        return problem
    if answer is None:
        return "closed"
    return str(answer.status)


def _how_it_is(server: Server) -> str:
    if not server.is_alive:
        return "the server died"
    return "it does not answer a good request any more"
