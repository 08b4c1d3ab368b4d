"""What stands around every route: identity, the gate, and errors as answers."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.unanswered import internal
from parnet_deploy.serve.http.exchange import CLIENT_GONE, KEY, REFUSED, Exchange
from parnet_deploy.serve.http.fields import CLOSE, Headers, completed
from parnet_deploy.serve.http.gate import Gate
from parnet_deploy.serve.http.refusal import error_answer
from parnet_deploy.serve.http.watch import ClientGoneError
from parnet_deploy.serve.transport.limits import stopping
from parnet_deploy.serve.transport.logs import REQUEST_ID

_log = logging.getLogger(__name__)


class Guard:
    """The middleware around every route."""

    def __init__(self, app: ASGIApp, *, gate: Gate) -> None:
        """Stand around `app`, a route or all of them; requests come and go through `gate`."""
        self._app = app
        self._gate = gate
        self._traffic = gate.traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever comes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange: Exchange = scope.get(KEY) or Exchange(scope)  # where it has come by the lane
        token = REQUEST_ID.set(exchange.id)
        self._traffic.active += 1
        try:
            await self._answer(exchange, scope, receive, send)
        finally:
            self._traffic.active -= 1
            self._gate.end(exchange)
            REQUEST_ID.reset(token)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = self._complete(exchange, message["headers"])
            else:
                exchange.sent += len(message.get("body", b""))
            await send(message)

        try:
            self._gate.check(exchange, scope)
            await self._app(scope, receive, sending)
        except RequestError as exc:
            await _refuse(exchange, sending, exc)
        except ClientGoneError:
            exchange.status = scope.get(REFUSED, CLIENT_GONE)
        except asyncio.CancelledError:
            # Work that was not done when the grace period was over.
            await _refuse(exchange, sending, stopping())
        except Exception:
            _log.exception("a request failed in a way that nobody foresaw")
            if exchange.status:
                raise  # half an answer is out: the connection is closed
            await _refuse(exchange, sending, internal())

    def _complete(self, exchange: Exchange, given: Headers) -> Headers:
        headers = completed(given, exchange.id)
        unread = exchange.has_body and not exchange.body_read
        closing = unread or self._traffic.draining
        if closing and all(name != CLOSE[0] for name, _ in given):
            headers.append(CLOSE)
        return headers


async def _refuse(exchange: Exchange, send: Send, error: RequestError) -> None:
    if exchange.status:  # an answer has begun, and cannot become another
        return
    headers, body = error_answer(error)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
