"""What stands around every route: identity, key, limits, errors as answers, and the log's line."""

from __future__ import annotations

import asyncio
import logging
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.unanswered import internal
from parnet_deploy.serve.http.exchange import CLIENT_GONE, REFUSED, Exchange
from parnet_deploy.serve.http.fields import CLOSE, Headers, completed
from parnet_deploy.serve.http.refusal import NOTHING_HERE, error_answer
from parnet_deploy.serve.http.watch import ClientGoneError
from parnet_deploy.serve.transport.key import check_key
from parnet_deploy.serve.transport.limits import stopping, too_large
from parnet_deploy.serve.transport.logs import REQUEST_ID, log_facts
from parnet_deploy.serve.transport.traffic import Traffic

_log = logging.getLogger(__name__)

OPEN = frozenset(("/", "/v2/health/live", "/v2/health/ready"))
"""Paths that need no key: orchestrators have none, and the page asks its user for one."""

_STRANGE = re.compile(rb"%(?:[01][0-9a-f]|2[5f]|5c|7f|(?![0-9a-f]{2}))", re.IGNORECASE)
"""What hides a slash, a percent sign or a control character, or is no encoding at all."""


class Guard:
    """The middleware around every route."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        traffic: Traffic,
        limit: int,
        api_key: str | None,
    ) -> None:
        """Stand around `app`.

        Args:
            app: a route, or all of them.
            traffic: told of every request.
            limit: the largest body in bytes.
            api_key: what clients have to send, or None.
        """
        self._app = app
        self._traffic = traffic
        self._limit = limit
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever comes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope)
        token = REQUEST_ID.set(exchange.id)
        self._traffic.active += 1
        try:
            await self._answer(exchange, scope, receive, send)
        finally:
            self._traffic.active -= 1
            self.end(exchange)
            REQUEST_ID.reset(token)

    def end(self, exchange: Exchange) -> None:
        """Count a request that has its answer, and log it."""
        self._traffic.answers[exchange.status] += 1
        message = f"{exchange.method} {exchange.path} {exchange.status}"
        log_facts(_log, message, exchange.facts)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = self._complete(exchange, message["headers"])
            else:
                exchange.sent += len(message.get("body", b""))
            await send(message)

        try:
            self.check(exchange, scope)
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

    def check(self, exchange: Exchange, scope: Scope) -> None:
        """Refuse what no route needs to see.

        Raises:
            RequestError: a path that is written strangely (404), the wrong key (401), a body that
                is announced to be too large (413).
        """
        raw = scope.get("raw_path") or b""
        if b"%" in raw and (_STRANGE.search(raw) or "\ufffd" in scope["path"]):
            raise RequestError(404, NOTHING_HERE)
        if self._key is not None and scope["path"] not in OPEN:
            check_key(exchange.authorization, self._key, "'Authorization: Bearer KEY'")
        if exchange.content_length > self._limit:
            raise too_large(self._limit)

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
