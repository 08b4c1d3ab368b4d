"""A connection with an express lane past the application."""

from __future__ import annotations

import asyncio
from typing import Any

from parnet_deploy.serve.http.exchange import COMPLETE
from parnet_deploy.serve.http.express import Express, Passenger
from parnet_deploy.serve.http.fields import raw_header
from parnet_deploy.serve.http.sockets.connection import Connection
from parnet_deploy.serve.http.sockets.parsing import new_parser

_PATIENCE = 0.02
"""Seconds for the body; then the application waits for the rest of it, with its deadline."""

_RIDES = 4
"""Answers in one turn of the event loop: requests that lie behind them are the application's, and
others get their turn. A client that waits for its answers has two in a turn at most."""


class ExpressConnection(Connection):
    """A connection whose lone requests are answered in its own callbacks."""

    def __init__(self, *args: Any, express: Express, **kwargs: Any) -> None:
        """Made for every connection, as `Connection`."""
        super().__init__(*args, **kwargs)
        self._express = express
        self._passenger: Passenger | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._rides = 0
        self._was_answered = False

    def _begin(self) -> None:
        parser, before = self.parser, self._newest
        if (
            self._express.note(self)
            and (before is None or before.response_complete)
            and self._rides < _RIDES
            and not self.expect_100_continue
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and (passenger := self._express.enter(self.url, self.scope))  # type: ignore[arg-type]
        ):
            self._passenger = passenger
            self._patience = self.loop.call_later(_PATIENCE, self._hand_over)
            return
        super()._begin()

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body that passed the parser."""
        if (passenger := self._passenger) is None:
            super().on_body(body)
            return
        self._body_bytes += len(body)
        if not passenger.body.put(body):
            self._hand_over()

    def on_message_complete(self) -> None:
        """A request's last byte has passed the parser."""
        if (passenger := self._passenger) is None:
            super().on_message_complete()
        else:
            self._arrive(passenger)

    def room(self) -> memoryview | None:
        """Where the next bytes belong; None: `data_received` wants them."""
        passenger = self._passenger
        return super().room() if passenger is None else passenger.body.left()

    def body_received(self, count: int) -> None:
        """So many bytes have been written to `room`, which the parser does not see."""
        if (passenger := self._passenger) is None:
            super().body_received(count)
        elif not passenger.body.filled(count):
            self._hand_over()
        elif not passenger.body.left():
            self._arrive(passenger)
            self.parser = new_parser(self)  # not before: to hand over, the old one is asked

    def connection_lost(self, exc: Exception | None) -> None:
        """Let everything go."""
        self._express.forget(self)
        if (passenger := self._passenger) is not None:
            self._leave()
            self._express.gone(passenger)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends: what has begun is the application's to answer, or to refuse."""
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
        is_free = not (self.flow.write_paused or self.transport.is_closing())
        answer = self._express.answer(passenger) if is_free else None
        if answer is None:
            self._hand_over()
            return
        status, fields, body = answer
        self._leave()
        self._was_answered = True
        self._rides += 1
        if self._rides == 1:
            self.loop.call_soon(self._rest)
        header = raw_header(status, (*self.server_state.default_headers, *fields))
        try:
            self._wire.write_together(header, body)
        finally:
            self._express.end(passenger)
        self._await_next()

    def _rest(self) -> None:
        """Another turn of the event loop has begun."""
        self._rides = 0

    def _leave(self) -> None:
        self._passenger = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _hand_over(self) -> None:
        """Have the application go on with what has come, if there is a request on the lane."""
        if (passenger := self._passenger) is None:
            return
        self._leave()
        self._express.hand_over(passenger)
        super()._begin()
        cycle = self.cycle
        cycle.more_body = len(passenger.body.left()) > 0
        if cycle.more_body:
            self.flow.pause_reading()  # until it is known where the rest belongs
        else:
            cycle.scope[COMPLETE] = True  # type: ignore[literal-required]  # ours
