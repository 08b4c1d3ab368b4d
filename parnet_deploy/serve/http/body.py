"""Bodies: read within a limit, a budget and a deadline, and decompressed."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import Receive

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.coding import IDENTITY, check_coding, undo
from parnet_deploy.serve.http.exchange import Exchange
from parnet_deploy.serve.http.watch import ClientGoneError
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.transport.budget import Budget, Hold
from parnet_deploy.serve.transport.limits import stopping, too_large
from parnet_deploy.serve.transport.traffic import Traffic

_ALIGNMENT = 16
"""Bytes: where CPython lets the contents of `bytes` begin."""

_SMALL = 32_768
"""Compressed bytes that are undone on the event loop: sooner than a thread would begin."""


class BodyReader:
    """Reads bodies whole."""

    def __init__(self, limit: int, settings: ServeSettings, budget: Budget, traffic: Traffic):
        """Read bodies of at most `limit` bytes, before and after decompression."""
        self._limit = limit
        self._seconds = settings.body_timeout
        self._budget = budget
        self._traffic = traffic

    def hold(self) -> Hold:
        """What one request's body takes of the budget, for as long as it is in memory."""
        return self._budget.hold()

    async def read(
        self, exchange: Exchange, receive: Receive, hold: Hold, *, aligned: int = 0
    ) -> bytes | memoryview:
        """A request's body, decompressed.

        Args:
            exchange: of the request.
            receive: where its body comes from.
            hold: takes what is in memory.
            aligned: where in the body a tensor begins: an address that is a multiple of 16, so that
                the tensor need not be copied. Of a body that came in one part it may be another.

        Raises:
            RequestError: it is too large (413), too slow (408), damaged (400), or there are too
                many others (503); its coding is not known (415).
            ClientGoneError: it will never be complete.
        """
        coding = exchange.content_encoding
        check_coding(coding)
        try:
            async with asyncio.timeout(self._seconds) as deadline:
                with self._traffic.reading(deadline):
                    parts = await _collect(exchange, receive, hold)
        except TimeoutError as exc:
            raise self._late() from exc
        except HTTPException as exc:  # from Starlette's limit
            if exc.status_code != 413:
                raise
            raise too_large(self._limit) from exc
        if coding in IDENTITY:
            return parts[0] if len(parts) == 1 else _joined(parts, -aligned % _ALIGNMENT)
        body = b"".join(parts)
        if len(body) <= _SMALL:
            plain = undo(coding, body, self._limit)
        else:
            plain = await asyncio.to_thread(undo, coding, body, self._limit)
        hold.take(len(plain))
        return plain

    def _late(self) -> RequestError:
        if self._traffic.draining:
            return stopping()
        return RequestError(408, f"the body was not complete after {self._seconds:g} s")


async def _collect(exchange: Exchange, receive: Receive, hold: Hold) -> list[bytes]:
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        hold.take(len(part))
        exchange.received += len(part)
        parts.append(part)
    exchange.body_read = True
    return parts


def _joined(parts: list[bytes], shift: int) -> bytes | memoryview:
    """Parts as one, so many bytes behind an address that is a multiple of 16."""
    return memoryview(b"".join((bytes(shift), *parts)))[shift:] if shift else b"".join(parts)
