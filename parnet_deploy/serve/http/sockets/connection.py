"""One connection: uvicorn's, with deadlines, limits, and refusals in our words.

What uvicorn leaves open: it waits for headers for ever, reads headers of any size, puts any number
of requests behind each other, and lets a connection live on whose request's body never ends.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.exchange import COMPLETE, REFUSED, STRAIGHT, WIRE, Place
from parnet_deploy.serve.http.refusal import raw_answer
from parnet_deploy.serve.http.sockets.one_piece import OnePiece
from parnet_deploy.serve.http.sockets.parsing import BodyParser, framing_of, new_parser
from parnet_deploy.serve.http.sockets.transport import AnswerTransport
from parnet_deploy.serve.transport.logs import log_facts
from parnet_deploy.serve.transport.traffic import Traffic

_log = logging.getLogger(__name__)

_MOST_TURNED_AWAY = 64
"""Connections beyond the maximum that are told so at the same time; others are just closed."""

_MOST_PIPELINED = 16

_MOST_SMALL_CHUNKS = 65_536
_SMALL_CHUNK = 64
"""Of more chunks than that a body is refused where they are smaller than this, in bytes: each costs
the event loop some microseconds, however little is in it."""

_HEADERS_END = b"\r\n\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a connection may cost. Times are in seconds.

    Attributes:
        connections: at once.
        header: largest, in bytes.
        header_timeout: from the connection, or a request's first byte, to its header's end.
        idle_timeout: between an answer and the next request.
        write_timeout: for which a client may leave an answer waiting.
    """

    connections: int
    header: int
    header_timeout: float
    idle_timeout: float
    write_timeout: float


@dataclass(slots=True)
class _Chunks:
    """Of one body."""

    count: int = 0
    bytes: int = 0


class Connection(HttpToolsProtocol):
    """A connection that cannot be kept open for nothing."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        traffic: Traffic,
    ) -> None:
        """Made by uvicorn for every connection."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._traffic = traffic
        self.timeout_keep_alive = limits.idle_timeout  # type: ignore[assignment]  # goes to call_later
        self._header_deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._in_header = False
        self._header_bytes = 0
        self._begins = False
        self._body_bytes = 0
        self._chunks = _Chunks()
        self._beside_body = 0
        self._running: RequestResponseCycle | None = None
        self._refused = False
        self._last_words: bytes | None = None
        self._is_turned_away = False

    # --- the connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away where there are too many."""
        self._wire = AnswerTransport(transport, self._is_receiving)
        super().connection_made(self._wire)
        self._traffic.connections += 1
        if len(self.connections) > self._limits.connections:
            self._turn_away()
            return
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let everything go; the request that is being worked on is told."""
        self._traffic.connections -= 1
        self._traffic.turned_away -= self._is_turned_away
        for deadline in (self._header_deadline, self._write_deadline, self.timeout_keep_alive_task):
            if deadline is not None:
                deadline.cancel()
        if (running := self._running) is not None:  # uvicorn tells the newest one only
            running.disconnected = running.disconnected or not running.response_complete
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def room(self) -> memoryview | None:
        """Where the next bytes belong; None: `data_received` wants them."""
        place = self._place
        return None if place is None or self._refused else place.left() or None

    def body_received(self, count: int) -> None:
        """So many bytes have been written to `room`, which the parser does not see.

        It is left in the middle of the body. Should the rest not be wanted, the connection is
        closed after the answer; else the next request gets a parser of its own.
        """
        place = self._place
        if place is None:
            return
        if not place.filled(count):
            self.cycle.message_event.set()
        elif not place.left():
            self.parser = new_parser(self)
            self.on_message_complete()

    def data_received(self, data: bytes | memoryview) -> None:
        """Read what the client sends; after a refusal nothing is read any more."""
        if self._refused or self.transport.is_closing():
            return
        self._begins = False
        self._body_bytes = 0
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(RequestError(400, "this is not a request of HTTP/1.1"))
        if self._in_header and not self._refused:
            self._header_bytes += self._begun(bytes(data)) if self._begins else len(data)
            if self._header_bytes > self._limits.header:
                self._refuse(self._too_long())
            elif self._header_deadline is None:
                self._await_header()
        elif self._is_beside_body(len(data)):
            self._refuse(self._too_long())
        if (newest := self._newest) is not None and newest.more_body and newest.body:
            self.flow.pause_reading()  # until it is known where the rest belongs

    def _is_beside_body(self, count: int) -> bool:
        """Whether too much came of a body that is none of it: trailers, a chunk's extensions.

        Args:
            count: bytes that just came, none of them of a header.
        """
        newest = self._newest
        if self._refused or newest is None or not newest.more_body or self._body_bytes:
            self._beside_body = 0
        else:
            self._beside_body += count
        return self._beside_body > self._limits.header

    def _parse(self, data: bytes | memoryview) -> None:
        """Have the parser read; an upgrade, to what is not spoken here, is passed over."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if self._refused:
                return
            self.cycle.keep_alive = False
            if framing := framing_of(self.headers):
                self.parser = BodyParser(framing, self)  # type: ignore[assignment]  # as much of one
                self.parser.feed_data(data[exc.args[0] :])

    def pause_writing(self) -> None:
        """The client takes nothing: wait for it, but not for ever."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(
            self._limits.write_timeout, self.transport.abort
        )

    def resume_writing(self) -> None:
        """The client has taken something."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came, or the client has not even taken the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # --- what the parser finds --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_header = self._begins = True
        self._header_bytes = 0
        self._chunks = _Chunks()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of a header, and none of the trailers behind a body.

        A trailer must not stand for a field that decides who asks, or how a body is read, and no
        other is known here. Reference: RFC 9110, section 6.5.1.
        """
        if self._in_header:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer, or refuse to."""
        self._in_header = False
        self._unset_keepalive_if_required()
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None
        if self._refused:
            return
        if (error := self._complaint()) is not None:
            self._refuse(error)
            return
        self._begin()

    def _begin(self) -> None:
        """Have the application answer the request whose header is complete."""
        super().on_headers_complete()
        one_piece = OnePiece(self.cycle, self._wire, self._traffic)
        self.cycle.scope[WIRE] = one_piece  # type: ignore[literal-required]  # ours

    def on_chunk_header(self) -> None:
        """A chunk begins.

        Raises:
            ValueError: it is refused, and the parser is to stop.
        """
        chunks = self._chunks
        if chunks.count > _MOST_SMALL_CHUNKS and chunks.bytes < _SMALL_CHUNK * chunks.count:
            if not self._refused:
                self._refuse(
                    RequestError(
                        400,
                        f"the body has more than {_MOST_SMALL_CHUNKS} chunks of fewer than "
                        f"{_SMALL_CHUNK} bytes; send larger ones, or its Content-Length",
                    )
                )
            raise ValueError("too many chunks")
        chunks.count += 1

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body until it is asked for; the first is kept as it is."""
        cycle = self.cycle
        self._body_bytes += len(body)
        self._chunks.bytes += len(body)
        if self._refused or cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # type: ignore[assignment]  # `receive` makes bytes of it
        elif isinstance(cycle.body, bytearray):
            cycle.body += body
        else:
            cycle.body = bytearray(cycle.body)
            cycle.body += body
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """A request's last byte, unless the parser takes its body for something else."""
        if not (self._refused or (self.parser.should_upgrade() and framing_of(self.headers))):
            self.cycle.scope[COMPLETE] = True  # type: ignore[literal-required]  # ours
            super().on_message_complete()

    # --- answers ----------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Wait for the next request, or hang up where none can come."""
        self._wire.flush()
        if self._running is not None:
            self._running.scope.pop(WIRE, None)  # type: ignore[misc]  # it holds the cycle, whose it is
        if not self.pipeline:
            if self._last_words is not None:
                self._say(self._last_words)
            elif self.cycle.more_body:  # nobody wants the rest of it
                self.transport.close()
        self._await_next()

    def _await_next(self) -> None:
        """Wait for the next request, which may be there already."""
        super().on_response_complete()

    def _refuse(self, error: RequestError) -> None:
        """Answer without the application, after those that came before, and hang up."""
        self._refused = True
        self._log_refusal(error)
        cycle = self._newest
        if cycle is not None and not cycle.response_complete and cycle.more_body:
            if self.pipeline:  # the body that broke off is of one that has not been begun
                self.pipeline.popleft()
            else:
                self._break_off(cycle, error)
                return
        self._traffic.answers[error.status] += 1
        if self._running is None or self._running.response_complete:
            self._say(raw_answer(error))
        else:
            self._last_words = raw_answer(error)

    def _break_off(self, cycle: RequestResponseCycle, error: RequestError) -> None:
        """Answer in the application's place, which will see its client as gone."""
        cycle.scope[REFUSED] = error.status  # type: ignore[literal-required]  # ours
        cycle.disconnected = True
        cycle.message_event.set()
        self._say(b"" if cycle.response_started else raw_answer(error))

    def _say(self, answer: bytes) -> None:
        if answer:
            self.transport.write(answer)
        self.transport.close()

    def _turn_away(self) -> None:
        """Tell a connection beyond the maximum so, and close it."""
        self.connections.discard(self)  # it is none of those that are counted
        if self._traffic.turned_away >= _MOST_TURNED_AWAY:
            self.transport.abort()
            return
        self._is_turned_away = True
        self._traffic.turned_away += 1
        message = f"{self._limits.connections} connections are open, which is the limit"
        self._refuse(RequestError(503, message, retry_after=1))

    def _complaint(self) -> RequestError | None:
        """What is wrong with a header that could be parsed."""
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            hosts += name == b"host"
        if size > self._limits.header:
            return self._too_long()
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            return RequestError(400, "a request has one Host")  # RFC 9112, section 3.2
        if len(self.pipeline) >= _MOST_PIPELINED:
            message = f"{_MOST_PIPELINED} requests wait on this connection, which is the limit"
            return RequestError(503, message, retry_after=1)
        return None

    def _begun(self, data: bytes) -> int:
        """Bytes of a header that has begun in `data` and not ended there, behind other requests.

        What is not sure to belong to it is not counted: of what came before an empty line was the
        end, or a body.
        """
        end = data.rfind(_HEADERS_END)
        before = end + len(_HEADERS_END) if end >= 0 else 0
        return max(0, len(data) - before - self._body_bytes)

    def _too_long(self) -> RequestError:
        return RequestError(431, f"the header has more than {self._limits.header} bytes")

    def _await_header(self) -> None:
        self._header_deadline = self.loop.call_later(
            self._limits.header_timeout, self._on_slow_header
        )

    def _on_slow_header(self) -> None:
        self._header_deadline = None
        if self._in_header:
            seconds = self._limits.header_timeout
            self._refuse(RequestError(408, f"the header was not complete after {seconds:g} s"))
        else:  # not a single byte of one
            self.transport.close()

    def _is_receiving(self) -> bool:
        """Whether the client is in the middle of a request, or was refused in it."""
        newest = self._newest
        return self._in_header or self._refused or (newest is not None and newest.more_body)

    @property
    def is_silent(self) -> bool:
        """Whether nothing has been asked yet."""
        return self.cycle is None

    @property
    def _place(self) -> Place | None:
        """Where the newest request's body is being put together."""
        cycle = self._newest
        return None if cycle is None else cycle.scope.get(STRAIGHT)  # type: ignore[return-value]

    @property
    def _newest(self) -> RequestResponseCycle | None:
        """The request whose header came last; None before the first."""
        return self.cycle

    def _log_refusal(self, error: RequestError) -> None:
        client = f"{self.client[0]}:{self.client[1]}" if self.client else ""
        facts = {"event": "refused", "status": error.status, "client": client}
        log_facts(_log, f"refused {error.status}: {error}", lambda: facts)
