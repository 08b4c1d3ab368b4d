"""An answer that leaves in one piece, past ASGI's messages."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from parnet_deploy.serve.http.fields import Headers, raw_header
from parnet_deploy.serve.http.sockets.transport import AnswerTransport
from parnet_deploy.serve.transport.traffic import Traffic


class OnePiece:
    """Sends the whole answer to one request; an `exchange.Wire`.

    By ASGI an answer is two coroutines, and uvicorn looks through every header field again: a
    tenth of what the server adds to a network's run.
    """

    __slots__ = ("_cycle", "_traffic", "_transport")

    def __init__(
        self, cycle: RequestResponseCycle, transport: AnswerTransport, traffic: Traffic
    ) -> None:
        """Send the answer to what this cycle has asked."""
        self._cycle = cycle
        self._transport = transport
        self._traffic = traffic

    def is_free(self) -> bool:
        """Whether one may be sent: nothing of another has been, and the connection goes on.

        Where the client takes nothing, or the connection is to be closed, ASGI's way knows more.
        """
        cycle = self._cycle
        return cycle.keep_alive and not (
            cycle.response_started
            or cycle.disconnected
            or cycle.flow.write_paused
            or self._traffic.draining
            or self._transport.is_closing()
        )

    def send(self, status: int, fields: Headers, body: bytes) -> None:
        """Send an answer whose fields say how long it is; `is_free` has just been asked."""
        cycle = self._cycle
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        header = raw_header(status, (*cycle.default_headers, *fields))  # the date is of those
        self._transport.write_together(header, body)
        cycle.message_event.set()
        cycle.on_response()
