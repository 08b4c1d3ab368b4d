"""Clients that keep a connection for nothing."""

from __future__ import annotations

import time

from serving_faults.scenario import Scenario, Side, WrongError
from serving_faults.wire import Connection, head

SHORT = ("--header-timeout", 1, "--body-timeout", 1, "--idle-timeout", 1)

_PAUSE = 0.02
"""Seconds between two bytes of a client that dribbles."""


def deadline_scenarios() -> tuple[Scenario, ...]:
    """All of them."""
    return tuple(
        Scenario(title=title, group="deadlines", expected=expected, do=do)
        for title, expected, do in (
            ("a connection without a byte", "closed", _silent),
            ("a header that stops", "408, closed", _header_stops),
            ("a header that dribbles", "408, closed", _header_dribbles),
            ("a body that stops", "408, closed", _body_stops),
            ("a body that dribbles", "408, closed", _body_dribbles),
            ("chunks that dribble", "408, closed", _chunks_dribble),
            ("a connection that is idle after an answer", "closed", _idle),
        )
    )


def _silent(side: Side) -> str:
    return _watch(side, b"", b"", (0,))


def _header_stops(side: Side) -> str:
    return _watch(side, b"POST /v2 HTTP/1.1\r\nHost: x\r\nX-Half", b"", (408,))


def _header_dribbles(side: Side) -> str:
    return _watch(side, b"POST /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"x", (408,))


def _body_stops(side: Side) -> str:
    start = head("POST", side.model.path, "Content-Length: 1000000") + b'{"inputs":'
    return _watch(side, start, b"", (408,))


def _body_dribbles(side: Side) -> str:
    start = head("POST", side.model.path, "Content-Length: 1000000")
    return _watch(side, start, b" ", (408,))


def _chunks_dribble(side: Side) -> str:
    start = head("POST", side.model.path, "Transfer-Encoding: chunked")
    return _watch(side, start, b"1\r\n \r\n", (408,))


def _idle(side: Side) -> str:
    server = side.serve(*SHORT)
    with Connection(server.port) as connection:
        connection.send(head("GET", "/v2"))
        answer = connection.answer()
        if answer is None or answer.status != 200:
            raise WrongError("GET /v2 was not answered")
        begin = time.monotonic()
        if not connection.ends(side.look):
            raise WrongError(f"open after {side.look:g} s", "closed")
        return f"closed after {time.monotonic() - begin:.1f} s"


def _watch(side: Side, start: bytes, drip: bytes, right: tuple[int, ...]) -> str:
    """Send a beginning and then, slowly, drops, until the server has enough of it."""
    server = side.serve(*SHORT)
    begin = time.monotonic()
    with Connection(server.port) as connection:
        connection.send(start)
        while not connection.readable(_PAUSE):
            if time.monotonic() - begin > side.look:
                raise WrongError(f"open after {side.look:g} s", "closed")
            if drip:
                connection.send(drip)
        answer = connection.answer()
        seconds = time.monotonic() - begin
        if not connection.ends(side.look):
            raise WrongError("open after its answer", "closed")
    status = 0 if answer is None else answer.status
    measured = f"{status or 'closed'} after {seconds:.1f} s"
    if status not in right:
        raise WrongError(measured, str(right[0] or "no answer"))
    if problem := side.model.good_problem(server.port):
        raise WrongError(f"{measured}; then {problem}")
    return measured
