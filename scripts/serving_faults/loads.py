"""Clients that go, more clients than can be served, and the end in the middle of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from serving_faults.scenario import Scenario, Side, WrongError
from serving_faults.servers import Server, wait
from serving_faults.trick import FAILS, spin
from serving_faults.wire import Answer, Connection, WireError, head

ROUNDS = 30_000
"""Of a run that lasts a second at least, on any machine."""

QUEUE = 3
THREADED = ("--inline-below", 0)
"""Else an engine that is known to be fast would hold everything up while it is told to be slow."""

FULL = ("--queue", QUEUE, *THREADED)
PATIENCE = 90.0

TIMES = 3
LEFT = 20
BODY = 4 << 20
"""Bytes of a body that is left; so many of them at once are beyond what is kept for the next."""

BUFFERED = "parnet_buffered_bytes"

CLIENTS = 4
ANSWERS = 50
ENOUGH = 30.0
"""Seconds for them."""

SETTLED = 2
"""Runs of the engine that `_settle` costs."""

UNBOUNDED = "its queue has no bound unless a model's configuration sets one"
ENDLESS = "its requests have no deadline unless a model's configuration sets one"


def load_scenarios() -> tuple[Scenario, ...]:
    """All of them."""
    return (
        Scenario(
            title="clients gone in the middle of a body",
            group="clients that go",
            expected="files and memory given back",
            do=_gone_in_body,
        ),
        Scenario(
            title="clients gone while their requests wait",
            group="clients that go",
            expected="none of them is run",
            do=_gone_waiting,
        ),
        Scenario(
            title="a client gone while its request is run",
            group="clients that go",
            expected="the next is answered",
            do=_gone_running,
        ),
        Scenario(
            title="the queue is full",
            group="overload",
            expected="503 with Retry-After; who waits is answered",
            do=_full,
            alone=UNBOUNDED,
        ),
        Scenario(
            title="a request waits too long",
            group="overload",
            expected="503 or 504, and it is never run",
            do=_late,
            alone=ENDLESS,
        ),
        Scenario(
            title="SIGTERM under load",
            group="the end",
            expected="all that was accepted is answered; exit 0",
            do=_ended,
        ),
        Scenario(
            title="the engine fails in a request",
            group="engines",
            expected="500, not ready, ready again",
            do=_failing,
        ),
    )


# --- clients that go ----------------------------------------------------------------------------


def _gone_in_body(side: Side) -> str:
    server = side.serve(*FULL)
    _settle(side, server)
    files, memory = server.files(), []
    for _ in range(TIMES):
        _leave_in_body(side, server)
        if not wait(lambda: server.files() <= files):
            raise WrongError(f"{server.files() - files} more files are open", "none")
        _settle(side, server)
        memory.append(server.memory())
    # Freed memory may be kept and used again, in pieces: what grows every time is lost.
    if (grown := min(after - before for before, after in pairwise(memory))) > LEFT * BODY / 4:
        raise WrongError(f"memory grows by {grown >> 20} MiB every time", "that it does not")
    return "all given back"


def _leave_in_body(side: Side, server: Server) -> None:
    """Many clients send most of a large body, and go when all of it is in memory."""
    start = head("POST", side.model.path, f"Content-Length: {BODY}")
    with contextlib.ExitStack() as stack:
        for _ in range(LEFT):
            stack.enter_context(Connection(server.port)).send(start + bytes(BODY - 100))
        enough = LEFT * (BODY - 100)
        if side.is_ours and not wait(lambda: server.metric(BUFFERED) >= enough):
            raise WrongError(f"{server.metric(BUFFERED):g} bytes are in memory", f"{enough}")
    if side.is_ours:
        for name in ("parnet_requests_in_flight", BUFFERED):
            if not server.wait_for_metric(name, 0):
                raise WrongError(f"{name} is {server.metric(name):g}", "0")


def _gone_waiting(side: Side) -> str:
    server = side.serve(*FULL)
    _settle(side, server)
    files, before = server.files(), _runs(server)
    with _spinning(side, server) as running:
        waiting = [Connection(server.port) for _ in range(QUEUE)]
        for connection in waiting:
            connection.send(side.model.good())
        if side.is_ours and not server.wait_for_metric("parnet_requests_waiting", QUEUE):
            raise WrongError("they do not wait")
        server.status_of("/v2/health/ready")  # what was sent before has been read by now
        for connection in waiting:
            connection.close()
        if side.is_ours and not server.wait_for_metric("parnet_requests_waiting", 0):
            raise WrongError("they still wait after their clients have gone", "that none does")
    if running.status != 200:
        raise WrongError(f"the one that ran got {running.status}", "200")
    _settle(side, server)
    extra = _runs(server) - before - 1 - SETTLED
    if not wait(lambda: server.files() <= files):
        raise WrongError(f"{server.files() - files} more files are open", "none")
    if extra:
        raise WrongError(f"{extra} of {QUEUE} are run for nobody", "none")
    return f"none of {QUEUE} is run"


def _gone_running(side: Side) -> str:
    server = side.serve(*FULL)
    _settle(side, server)
    files = server.files()
    with Connection(server.port) as connection:
        connection.send(_spinner(side, ROUNDS))
        if side.is_ours:
            _see_it_run(server)
        else:
            server.status_of("/v2/health/ready")  # what was sent before has been read by now
        before = _runs(server)
    if _runs(server) != before:
        raise WrongError("its run had ended before it went")
    _settle(side, server)
    if not wait(lambda: _runs(server) == before + 1 + SETTLED):
        raise WrongError(f"{_runs(server) - before - SETTLED} runs", "one")
    if not wait(lambda: server.files() <= files):
        raise WrongError(f"{server.files() - files} more files are open", "none")
    return "answered"


# --- overload -----------------------------------------------------------------------------------


def _full(side: Side) -> str:
    server = side.serve(*FULL)
    with contextlib.ExitStack() as stack, _spinning(side, server) as running:
        waiting = [stack.enter_context(Connection(server.port)) for _ in range(QUEUE)]
        for connection in waiting:
            connection.send(side.model.good())
        if not server.wait_for_metric("parnet_requests_waiting", QUEUE):
            raise WrongError("they do not wait")
        with Connection(server.port) as one_more:
            one_more.send(side.model.good())
            refused = one_more.answer()
        answers = [connection.answer(seconds=PATIENCE) for connection in waiting]
    statuses = [_status(each) for each in (*answers, running.answer)]
    if _status(refused) != 503 or "retry-after" not in (refused.headers if refused else ()):
        raise WrongError(f"one more got {_status(refused)}", "503 with Retry-After")
    if set(statuses) != {200}:
        raise WrongError(f"those that waited got {statuses}", "200")
    _settle(side, server)
    return "503 with Retry-After; who waited is answered"


def _late(side: Side) -> str:
    with side.fresh("--timeout", 0.5, *THREADED) as server:
        _settle(side, server)
        before = _runs(server)
        with _spinning(side, server) as running, Connection(server.port) as connection:
            connection.send(side.model.good())
            answer = connection.answer(seconds=PATIENCE)
        if _status(answer) not in (503, 504) or running.status not in (503, 504):
            raise WrongError(f"it got {_status(answer)}", "503 or 504")
        if not wait(lambda: _runs(server) > before, PATIENCE):
            raise WrongError("the engine does not end its run")
        _settle(side, server)
        extra = _runs(server) - before - 1 - SETTLED
    if extra:
        raise WrongError(f"{_status(answer)}, and it is run all the same", "never run")
    return f"{_status(answer)}, and not run"


# --- the end ------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Load:
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    ends_at: float = field(default_factory=lambda: time.monotonic() + 60)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _ended(side: Side) -> str:
    """Clients that ask as fast as they are answered; none may be left with what it had sent."""
    found = _Load()
    with side.fresh() as server:
        threads = [
            threading.Thread(target=_ask_on, args=(side, server, found)) for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        enough = wait(lambda: found.statuses[200] >= ANSWERS, ENOUGH)
        server.stop()
        status = server.end()
        found.ends_at = 0
        for thread in threads:
            thread.join(PATIENCE)
    if not enough:
        raise WrongError("it answers nothing")
    if found.lost:
        raise WrongError(f"{len(found.lost)} requests are lost ({found.lost[0]})", "none")
    if others := set(found.statuses) - {200, 503}:
        raise WrongError(f"some are answered {sorted(others)}", "200 or 503")
    if status != 0:
        raise WrongError(f"exit status {status}", "0")
    return "all answered; exit 0"


def _ask_on(side: Side, server: Server, found: _Load) -> None:
    """Ask until nobody takes connections, for a minute at most; who was taken gets an answer."""
    data = side.model.good()
    while time.monotonic() < found.ends_at:
        try:
            connection = Connection(server.port)
        except OSError:
            return
        try:
            with connection:
                connection.send(data)
                answer = connection.answer()
            if answer is None:
                raise WireError("the connection was closed")
        except (OSError, WireError) as exc:
            with found.lock:
                found.lost.append(str(exc))
            return
        with found.lock:
            found.statuses[answer.status] += 1


# --- engines ------------------------------------------------------------------------------------


def _failing(side: Side) -> str:
    """Each failure in a row is followed by a longer pause: one of them is seen."""
    image = side.model.image.copy()
    image[0, 0, 0, 0] = 2 * FAILS
    with side.fresh() as server:
        for _ in range(3):
            with Connection(server.port) as connection:
                connection.send(side.model.good(image))
                answer = connection.answer(seconds=PATIENCE)
            if _status(answer) != 500:
                raise WrongError(f"the request got {_status(answer)}", "500")
            seen = server.status_of("/v2/health/ready")
            if not wait(lambda: server.status_of("/v2/health/ready") == 200, PATIENCE):
                raise WrongError("500, and it is never ready again")
            if seen == 503:
                break
            if not side.is_ours:
                _settle(side, server)
                raise WrongError("500, and ready stays 200", "503")
        else:
            raise WrongError("500, and ready stays 200", "503")
        _settle(side, server)
    return "500, not ready, ready again"


# --- what they share ----------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Running:
    answer: Answer | None = None

    @property
    def status(self) -> int:
        return _status(self.answer)


@contextlib.contextmanager
def _spinning(side: Side, server: Server) -> Iterator[_Running]:
    """A request that is run, for some seconds; its answer is there at the end of the block."""
    running = _Running()
    with Connection(server.port) as connection:
        connection.send(_spinner(side, ROUNDS))
        if side.is_ours:
            _see_it_run(server)
        yield running
        running.answer = connection.answer(seconds=PATIENCE)


def _see_it_run(server: Server) -> None:
    """Wait until one request is in, and does not wait."""
    if not wait(
        lambda: (
            server.metric("parnet_requests_in_flight") == 1
            and server.metric("parnet_requests_waiting") == 0
        )
    ):
        raise WrongError("it is not run")


def _spinner(side: Side, rounds: int) -> bytes:
    image = side.model.image.copy()
    image[0, 0, 0, 0] = np.float32(spin(rounds))
    return side.model.good(image)


def _settle(side: Side, server: Server) -> None:
    """A good request is answered right, when what was before has ended."""
    with Connection(server.port) as connection:
        connection.send(side.model.good())
        answer = connection.answer(seconds=PATIENCE)
    if _status(answer) != 200:
        raise WrongError(f"a good request gets {_status(answer)}", "200")
    if problem := side.model.good_problem(server.port):
        raise WrongError(problem)


def _runs(server: Server) -> int:
    """How many requests its engine has run, by the protocol's statistics."""
    with Connection(server.port) as connection:
        connection.send(head("GET", "/v2/models/stats"))
        answer = connection.answer()
    if answer is None or answer.status != 200:
        raise WireError("there are no statistics")
    (model,) = json.loads(answer.body)["model_stats"]
    return int(model["execution_count"])


def _status(answer: Answer | None) -> int:
    return 0 if answer is None else answer.status
