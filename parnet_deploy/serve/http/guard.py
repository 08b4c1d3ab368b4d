"""What stands around every route: identity, key, limits, errors as answers, and the log's line."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.engine.unanswered import internal
from parnet_deploy.serve.http.exchange import CLIENT_GONE, REFUSED, Exchange
from parnet_deploy.serve.http.refusal import (
    CLOSE,
    NOTHING_HERE,
    Headers,
    error_answer,
)
from parnet_deploy.serve.http.watch import ClientGoneError
from parnet_deploy.serve.transport.key import check_key
from parnet_deploy.serve.transport.limits import stopping, too_large
from parnet_deploy.serve.transport.logs import REQUEST_ID, log_facts
from parnet_deploy.serve.transport.traffic import Traffic

_log = logging.getLogger(__name__)

POLICY = b"content-security-policy"
SECURE: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (POLICY, b"default-src 'none'; frame-ancestors 'none'"),
]
"""What every answer says, unless its route says otherwise."""

OPEN = frozenset(("/", "/v2/health/live", "/v2/health/ready"))
"""Paths that need no key: orchestrators have none, and the page asks its user for one."""

_STRANGE = re.compile(rb"%(?:[01][0-9a-f]|2[5f]|5c|7f|(?![0-9a-f]{2}))", re.IGNORECASE)
"""What hides a slash, a percent sign or a control character, or is no encoding at all."""


class Guard:
    """The middleware around all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        traffic: Traffic,
        limit: int,
        api_key: str | None,
        straight: Mapping[str, ASGIApp],
    ) -> None:
        """Stand around `app`.

        Args:
            app: the routes.
            traffic: told of every request.
            limit: the largest body in bytes.
            api_key: what clients have to send, or None.
            straight: what answers a POST at these paths, as the routes would: Starlette's layers
                would take longer than all that is done here.
        """
        self._app = app
        self._traffic = traffic
        self._limit = limit
        self._straight = straight
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
            self._traffic.answers[exchange.status] += 1
            log_facts(_log, f"{scope['method']} {exchange.path} {exchange.status}", exchange.facts)
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
            self._check(exchange, scope)
            found = self._straight.get(scope["path"]) if scope["method"] == "POST" else None
            await (found or self._app)(scope, receive, sending)
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

    def _check(self, exchange: Exchange, scope: Scope) -> None:
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
        headers = [(b"x-request-id", exchange.id.encode()), *given]
        said = {name for name, _ in given}
        headers += [field for field in SECURE if field[0] not in said]
        unread = exchange.has_body and not exchange.body_read
        if (unread or self._traffic.draining) and b"connection" not in said:
            headers.append(CLOSE)
        return headers


async def _refuse(exchange: Exchange, send: Send, error: RequestError) -> None:
    if exchange.status:  # an answer has begun, and cannot become another
        return
    headers, body = error_answer(error)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
