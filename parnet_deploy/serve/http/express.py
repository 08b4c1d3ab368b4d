"""The express lane: a lone request for tensors is answered as its last byte comes.

Between two runs of a network little of the interpreter is left in the processor's caches, so that
every step costs several times what it does in a loop: a task, a coroutine for each layer and the
messages between them took a third of all that the server added to the run. On this lane there are
none. It takes what is plain and soon done; everything else is the application's, which is also
handed whatever does not go as expected here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.unanswered import internal
from parnet_deploy.serve.http.connection import Connection
from parnet_deploy.serve.http.exchange import COMPLETE, Exchange
from parnet_deploy.serve.http.fields import Headers, completed, content_of, of_answer, raw_header
from parnet_deploy.serve.http.gathering import room
from parnet_deploy.serve.http.guard import Guard
from parnet_deploy.serve.http.parsing import new_parser
from parnet_deploy.serve.http.refusal import error_answer
from parnet_deploy.serve.plane import LARGE_BINARY, DataPlane
from parnet_deploy.serve.transport.budget import Budget, Hold
from parnet_deploy.serve.transport.logs import REQUEST_ID
from parnet_deploy.serve.transport.traffic import Traffic

_log = logging.getLogger(__name__)

_LONE = 0.05
"""Seconds without a request on another connection, after which one is lone. With several clients a
thread runs the engine, so that the next body is read meanwhile."""

_PATIENCE = 0.02
"""Seconds for the body; then the application waits for the rest of it, with its deadline."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Passenger:
    """A request on the lane.

    Attributes:
        exchange: of it.
        name: the model's.
        version: the model's, or None for any.
        header_length: bytes of its JSON; None: all of the body.
        room: where its body goes.
        hold: its part of the budget.
    """

    exchange: Exchange
    name: str
    version: str | None
    header_length: int | None
    room: memoryview
    hold: Hold


class Lane:
    """Which requests go past the application, and what they are answered."""

    def __init__(
        self,
        plane: DataPlane,
        guard: Guard,
        *,
        budget: Budget,
        traffic: Traffic,
        paths: Mapping[bytes, tuple[str, str | None]],
    ) -> None:
        """Nobody has asked.

        Args:
            plane: what answers.
            guard: what stands around the same routes of the application.
            budget: of bodies.
            traffic: what else is under way.
            paths: name and version of the model by the routes' paths.
        """
        self._plane = plane
        self._guard = guard
        self._budget = budget
        self._traffic = traffic
        self._paths = paths
        self._asking: object = None
        self._asked = self._others_asked = -1.0

    def enter(self, path: bytes, scope: Scope, connection: object) -> Passenger | None:
        """Take a POST whose header has come, or leave it to the application.

        Args:
            path: as it came.
            scope: its header is looked at; the path is added, as ASGI has it.
            connection: whose it is.
        """
        found = self._paths.get(path)
        if not (self._is_lone(connection) and found and self._plane.is_idle):
            return None
        scope["method"], scope["path"], scope["raw_path"] = "POST", path.decode(), path
        exchange = Exchange(scope)
        size = exchange.content_length
        if not (exchange.is_plain and 0 < size <= LARGE_BINARY):
            return None
        hold = self._budget.hold()
        try:
            self._guard.check(exchange, scope)
            header_length = exchange.header_length
            hold.take(size)
        except RequestError:  # which the application will say
            return None
        return Passenger(
            exchange=exchange,
            name=found[0],
            version=found[1],
            header_length=header_length,
            room=room(size, header_length or 0),
            hold=hold,
        )

    def answer(self, passenger: Passenger) -> tuple[int, Headers, bytes] | None:
        """Status, header fields and body for a request that has come; None: ask the application."""
        if self._traffic.draining or self._traffic.tasks:
            return None
        exchange = passenger.exchange
        body = passenger.room.toreadonly()
        try:
            found = self._plane.infer_at_once(
                passenger.name, passenger.version, body, passenger.header_length
            )
        except Exception as exc:  # noqa: BLE001 - whatever it is, there is an answer
            return self._refusal(exchange, exc)
        if found is None:
            return None
        answer, timing = found
        exchange.status, exchange.timing = 200, timing
        exchange.sent = len(answer.body)
        headers = [*content_of(answer), *of_answer(answer.body, timing)]
        return 200, completed(headers, exchange.id), answer.body

    def leave(self, passenger: Passenger) -> None:
        """A request has its answer."""
        exchange = passenger.exchange
        exchange.received = len(passenger.room)
        self._guard.end(exchange)

    def _refusal(self, exchange: Exchange, exc: Exception) -> tuple[int, Headers, bytes]:
        if isinstance(exc, RequestError):
            error = exc
        else:
            _log.error("a request failed in a way that nobody foresaw", exc_info=exc)
            error = internal()
        headers, body = error_answer(error)
        exchange.status, exchange.sent = error.status, len(body)
        return error.status, completed(headers, exchange.id), body

    def _is_lone(self, connection: object) -> bool:
        """Whether no other connection has asked lately, or is answered."""
        now = time.perf_counter()
        if connection is not self._asking:
            self._asking, self._others_asked = connection, self._asked
        self._asked = now
        alone = now - self._others_asked > _LONE
        return alone and not self._traffic.draining and not self._traffic.tasks


class ExpressConnection(Connection):
    """A connection with a lane past the application."""

    def __init__(self, *args: Any, lane: Lane, **kwargs: Any) -> None:
        """Made for every connection, as `Connection`."""
        super().__init__(*args, **kwargs)
        self._lane = lane
        self._passenger: Passenger | None = None
        self._filled = 0
        self._was_answered = False
        self._patience: asyncio.TimerHandle | None = None

    def _begin(self) -> None:
        parser = self.parser
        if (
            ((newest := self._newest) is None or newest.response_complete)
            and not self.expect_100_continue
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and (passenger := self._lane.enter(self.url, self.scope, self))  # type: ignore[arg-type]
        ):
            self._passenger, self._filled = passenger, 0
            self._patience = self.loop.call_later(_PATIENCE, self._hand_over)
            return
        super()._begin()

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body that came with its header."""
        if (passenger := self._passenger) is None:
            super().on_body(body)
            return
        self._body_bytes += len(body)
        end = self._filled + len(body)
        passenger.room[self._filled : end] = body
        self._filled = end

    def on_message_complete(self) -> None:
        """A request's last byte, which came with its header."""
        if self._passenger is None:
            super().on_message_complete()
        else:
            self._arrive(self._passenger)

    def room(self) -> memoryview | None:
        """Where the next bytes belong; None: `data_received` wants them."""
        if self._passenger is None:
            return super().room()
        return self._passenger.room[self._filled :]

    def body_received(self, count: int) -> None:
        """So many bytes have been written to `room`, which the parser does not see."""
        if (passenger := self._passenger) is None:
            super().body_received(count)
            return
        self._filled += count
        if self._filled == len(passenger.room):
            self._arrive(passenger)
            self.parser = new_parser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The application is told of it, and tells the log."""
        self._hand_over()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends: what has begun is answered."""
        self._hand_over()
        super().shutdown()

    @property
    def is_silent(self) -> bool:
        """Whether nothing has been asked yet."""
        return super().is_silent and not self._was_answered

    def _is_receiving(self) -> bool:
        return self._passenger is not None or super()._is_receiving()

    def _arrive(self, passenger: Passenger) -> None:
        """Answer a request whose last byte has come."""
        token = REQUEST_ID.set(passenger.exchange.id)
        try:
            is_free = not (self.flow.write_paused or self.transport.is_closing())
            answer = self._lane.answer(passenger) if is_free else None
            if answer is None:
                self._hand_over()
                return
            status, fields, body = answer
            header = raw_header(status, (*self.server_state.default_headers, *fields))
            self._wire.write_together(header, body)
            self._was_answered = True
            self._leave(passenger)
            self._lane.leave(passenger)
        finally:
            REQUEST_ID.reset(token)
        super(Connection, self).on_response_complete()  # there is no cycle that ours could look at

    def _leave(self, passenger: Passenger) -> None:
        self._passenger = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        passenger.hold.__exit__(None, None, None)

    def _hand_over(self) -> None:
        """Have the application go on with what has come, if there is a request on the lane."""
        if (passenger := self._passenger) is None:
            return
        self._leave(passenger)
        super()._begin()
        cycle = self.cycle
        cycle.body = bytes(passenger.room[: self._filled])  # type: ignore[assignment]  # as `on_body`
        cycle.more_body = self._filled < len(passenger.room)
        if cycle.more_body:
            self.flow.pause_reading()  # until it is known where the rest belongs
        else:
            cycle.scope[COMPLETE] = True  # type: ignore[literal-required]  # ours
        if cycle.body or not cycle.more_body:
            cycle.message_event.set()
