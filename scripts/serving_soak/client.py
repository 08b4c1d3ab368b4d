"""A client's process: asks, compares, counts."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serving_soak.asking import HANG_UP, Reply, Request, WrongError, draw
from serving_soak.network import Picture

SECONDS = 60.0
"""For one answer."""

_EXAMPLES = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a client does.

    Attributes:
        number: which client it is.
        port: of the server on 127.0.0.1.
        model: what the server calls it.
        requests: how many.
        pictures: what is asked about.
        seconds: when to stop, whatever is left.
    """

    number: int
    port: int
    model: str
    requests: int
    pictures: Sequence[Picture]
    seconds: float


@dataclass(kw_only=True, slots=True)
class Tally:
    """What came of a client's requests.

    Attributes:
        asked: requests by kind.
        right: those of them with the right answer, or left as was meant.
        left_whole: requests that were complete when their client left.
        lost: requests without an answer, with reasons of the first of them.
        wrong: answers that are not right, with reasons of the first of them.
        milliseconds: of every answer.
    """

    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    left_whole: int = 0
    lost: int = 0
    wrong: int = 0
    reasons: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def note(self, name: str, reason: str) -> None:
        """Keep the first reasons."""
        if len(self.reasons) < _EXAMPLES:
            self.reasons.append(f"{name}: {reason}")

    def __add__(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(
            asked=self.asked + other.asked,
            right=self.right + other.right,
            left_whole=self.left_whole + other.left_whole,
            lost=self.lost + other.lost,
            wrong=self.wrong + other.wrong,
            reasons=self.reasons + other.reasons,
            milliseconds=self.milliseconds + other.milliseconds,
        )


_progress: list[Any] = []
"""Shared numbers, where there are some: how many requests each client has sent."""


def share(numbers: Any) -> None:
    """Tell this process where its progress is to be noted."""
    _progress[:] = [numbers]


def run(task: Task) -> Tally:
    """Ask one request after the other."""
    rng = random.Random(task.number)
    tally = Tally()
    end = time.monotonic() + task.seconds
    with contextlib.closing(_Line(task.port)) as line:
        for number in range(task.requests):
            if time.monotonic() > end:
                break
            name = f"soak-{task.number}-{number}"
            request = draw(rng, task.model, task.pictures, name)
            tally.asked[request.kind] += 1
            if request.kind == HANG_UP:
                tally.left_whole += leave(task.port, request, name, rng)
                tally.right[request.kind] += 1
            else:
                _ask(line, request, name, tally)
            for numbers in _progress:
                numbers[task.number] = number + 1
        _end(line, tally)
    return tally


def leave(port: int, request: Request, name: str, rng: random.Random) -> bool:
    """Send a part of a request and hang up; whether it was all of it."""
    lines = [f"{request.method} {request.path} HTTP/1.1", "Host: 127.0.0.1"]
    fields = {"X-Request-Id": name, "Content-Length": str(len(request.body)), **request.fields}
    lines += [f"{key}: {value}" for key, value in fields.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    whole = head + request.body
    sent = rng.choice((len(head) // 2, len(head), len(head) + len(request.body) // 2, len(whole)))
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        connection.sendall(whole[:sent])
    return sent == len(whole)


class _Line:
    """A connection that is kept, and made anew where the server has ended it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)

    def ask(self, request: Request, name: str) -> Reply:
        fields = {"X-Request-Id": name, **request.fields}
        self._connection.request(request.method, request.path, request.body or None, fields)
        answer = self._connection.getresponse()
        found = {key.lower(): value for key, value in answer.getheaders()}
        return Reply(status=answer.status, fields=found, body=answer.read())

    def surplus(self) -> bytes:
        """What came without having been asked for."""
        if self._connection.sock is None:
            return b""
        self._connection.sock.settimeout(0.2)
        try:
            return self._connection.sock.recv(1024)
        except TimeoutError:
            return b""

    def close(self) -> None:
        self._connection.close()


def _ask(line: _Line, request: Request, name: str, tally: Tally) -> None:
    begin = time.perf_counter()
    try:
        reply = line.ask(request, name)
    except (OSError, http.client.HTTPException) as exc:
        tally.lost += 1
        tally.note(name, f"{request.kind}: {exc!r}")
        line.close()
        return
    tally.milliseconds.append(1000 * (time.perf_counter() - begin))
    try:
        if reply.fields.get("x-request-id") != name:
            raise WrongError(f"the answer's X-Request-Id is {reply.fields.get('x-request-id')}")
        request.check(reply)
    except (WrongError, ValueError, LookupError, TypeError) as exc:
        tally.wrong += 1
        tally.note(name, f"{request.kind}: {exc}")
        line.close()  # what else is on it would be taken for other answers
        return
    tally.right[request.kind] += 1


def _end(line: _Line, tally: Tally) -> None:
    """Look whether more answers came than requests were sent."""
    try:
        more = line.surplus()
    except OSError:
        more = b""
    if more:
        tally.wrong += 1
        tally.note("the end", f"{len(more)} bytes came that nobody had asked for")
