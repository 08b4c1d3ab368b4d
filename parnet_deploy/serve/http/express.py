"""The express lane: which requests are answered as their last byte comes, and what.

Between two runs of a network little of the interpreter is left in the processor's caches, so that
every step costs several times what it does in a loop: a task, a coroutine for each layer and the
messages between them took a third of all that the server added to the run. On this lane there are
none. It takes what is plain and soon done; everything else is the application's, which is also
handed whatever does not go as expected here (`sockets.express_connection`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.types import Scope

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.unanswered import internal
from parnet_deploy.serve.http.exchange import CLIENT_GONE, Exchange
from parnet_deploy.serve.http.fields import Headers, completed, content_of, of_answer
from parnet_deploy.serve.http.gate import Gate
from parnet_deploy.serve.http.gathering import STRAIGHT, Buffer, Counter
from parnet_deploy.serve.http.refusal import error_answer
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.transport.budget import Budget, Hold
from parnet_deploy.serve.transport.logs import REQUEST_ID

_log = logging.getLogger(__name__)

_LONE = 0.05
"""Seconds without a request on another connection, after which one is lone. With several clients a
thread runs the engine, so that the next body is read meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Passenger:
    """A request on the lane.

    Attributes:
        exchange: of it.
        name: the model's.
        version: the model's, or None for any.
        header_length: bytes of its JSON; None: all of the body.
        body: as far as it has come.
        hold: its part of the budget.
    """

    exchange: Exchange
    name: str
    version: str | None
    header_length: int | None
    body: Buffer
    hold: Hold


class Express:
    """The lane; for connections of one event loop."""

    def __init__(
        self,
        plane: DataPlane,
        gate: Gate,
        *,
        budget: Budget,
        limit: int,
        paths: Mapping[str, tuple[str, str | None]],
    ) -> None:
        """Nobody has asked.

        Args:
            plane: what answers.
            gate: where requests come in and go out.
            budget: of bodies.
            limit: bytes of a body.
            paths: name and version of the model by the routes' paths. What has to be encoded in a
                path is left to the application, which takes it apart.
        """
        self._plane = plane
        self._gate = gate
        self._traffic = gate.traffic
        self._budget = budget
        self._limit = limit
        self._paths = {path.encode(): to for path, to in paths.items() if quote(path) == path}
        self._asking: object = None
        self._asked = self._others_asked = -1.0

    def note(self, asking: object) -> bool:
        """Take note of any request; whether no other connection asks, or has asked lately.

        Args:
            asking: the connection.
        """
        now = time.perf_counter()
        if asking is not self._asking:
            self._asking, self._others_asked = asking, self._asked
        self._asked = now
        return now - self._others_asked > _LONE and not self._is_busy()

    def forget(self, asking: object) -> None:
        """A connection has ended."""
        if self._asking is asking:
            self._asking = None

    def enter(self, path: bytes, scope: Scope) -> Passenger | None:
        """Take a lone POST whose header has come.

        Args:
            path: as it came.
            scope: its header is looked at; method and path are added, as ASGI has them.

        Returns:
            None where it is the application's.
        """
        if (found := self._paths.get(path)) is None:
            return None
        scope["method"], scope["path"], scope["raw_path"] = "POST", path.decode(), path
        exchange = Exchange(scope)
        size = exchange.content_length
        if not (exchange.is_plain and 0 < size <= STRAIGHT):
            return None
        try:
            header_length = exchange.header_length
            self._gate.check(exchange, scope)
        except RequestError:  # which the application will say
            return None
        if not self._plane.takes_at_once(size, header_length):
            return None
        hold = self._budget.hold()
        counter = Counter(exchange, hold, self._limit)
        body = Buffer(size, counter, header_length or 0)
        self._traffic.active += 1
        return Passenger(
            exchange=exchange,
            name=found[0],
            version=found[1],
            header_length=header_length,
            body=body,
            hold=hold,
        )

    def answer(self, passenger: Passenger) -> tuple[int, Headers, bytes] | None:
        """Status, header fields and body for a request that has come.

        Returns:
            None where the application is to be asked.
        """
        if self._is_busy():
            return None
        exchange = passenger.exchange
        token = REQUEST_ID.set(exchange.id)  # no task has
        try:
            found = self._plane.infer_at_once(
                passenger.name, passenger.version, passenger.body.whole(), passenger.header_length
            )
        except Exception as exc:  # noqa: BLE001 - whatever it is, there is an answer
            return _refusal(exchange, exc)
        finally:
            REQUEST_ID.reset(token)
        if found is None:
            return None
        answer, timing = found
        exchange.status, exchange.sent, exchange.timing = 200, len(answer.body), timing
        headers = [*content_of(answer), *of_answer(answer.body, timing)]
        return 200, completed(headers, exchange.id), answer.body

    def end(self, passenger: Passenger) -> None:
        """A request has its answer."""
        self._leave(passenger)
        token = REQUEST_ID.set(passenger.exchange.id)
        self._gate.end(passenger.exchange)
        REQUEST_ID.reset(token)

    def gone(self, passenger: Passenger) -> None:
        """A request's client has gone before the last byte."""
        passenger.exchange.status = CLIENT_GONE
        self.end(passenger)

    def hand_over(self, passenger: Passenger) -> None:
        """The application goes on with a request, and counts its body anew."""
        self._leave(passenger)
        passenger.exchange.received = 0
        passenger.exchange.begun = passenger.body

    def _leave(self, passenger: Passenger) -> None:
        self._traffic.active -= 1
        passenger.hold.__exit__(None, None, None)

    def _is_busy(self) -> bool:
        """Whether other requests are under way, or nothing more is to be begun."""
        return self._traffic.draining or len(self._traffic.tasks) > 0


def _refusal(exchange: Exchange, exc: Exception) -> tuple[int, Headers, bytes]:
    if isinstance(exc, RequestError):
        error = exc
    else:
        _log.error("a request failed in a way that nobody foresaw", exc_info=exc)
        error = internal()
    headers, body = error_answer(error)
    exchange.status, exchange.sent = error.status, len(body)
    return error.status, completed(headers, exchange.id), body
