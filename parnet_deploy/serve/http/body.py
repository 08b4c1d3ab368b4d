"""Bodies: read within a limit, a budget and a deadline, and decompressed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

from starlette.types import Receive

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.coding import IDENTITY, Coded, check_coding
from parnet_deploy.serve.http.exchange import Exchange
from parnet_deploy.serve.http.gathering import STRAIGHT, Buffer, Counter, Parts, joined
from parnet_deploy.serve.http.watch import ClientGoneError
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.transport.budget import Budget, Hold
from parnet_deploy.serve.transport.limits import stopping
from parnet_deploy.serve.transport.traffic import Traffic

Made = TypeVar("Made")

_INLINE = 1 << 16
"""Bytes, compressed and decompressed, that are undone on the event loop: sooner than a thread would
begin, in a fifth of a millisecond."""

_PIECE = 1 << 20
"""Bytes that are decompressed before the budget is asked again."""

_UNDOERS = 2
"""Bodies that are decompressed on threads at the same time."""


class BodyReader:
    """Reads bodies whole."""

    def __init__(self, limit: int, settings: ServeSettings, budget: Budget, traffic: Traffic):
        """Read bodies of at most `limit` bytes, before and after decompression."""
        self._limit = limit
        self._seconds = settings.body_timeout
        self._budget = budget
        self._traffic = traffic
        self._undoing = asyncio.Semaphore(_UNDOERS)
        self._undoers = ThreadPoolExecutor(_UNDOERS, thread_name_prefix="decompress")

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
            aligned: where in the body a tensor begins: an address that is a multiple of 64, so that
                the tensor need not be copied. Of a body that came in one part it may be another.

        Raises:
            RequestError: it is too large (413), too slow (408), damaged (400), or there are too
                many others (503); its coding is not known (415).
            ClientGoneError: it will never be complete.
        """
        coding = exchange.content_encoding
        check_coding(coding)
        is_plain = coding in IDENTITY
        gathering = self._gather(exchange, receive, hold, aligned * is_plain)
        body = await (gathering if exchange.is_complete else self._in_time(gathering))
        return body if is_plain else joined(await self._undo(coding, body, hold), aligned)

    async def _in_time(self, gathering: Awaitable[Made]) -> Made:
        """A body that may never be complete."""
        try:
            async with asyncio.timeout(self._seconds) as deadline:
                with self._traffic.reading(deadline):
                    return await gathering
        except TimeoutError as exc:
            raise self._late() from exc

    async def _gather(
        self, exchange: Exchange, receive: Receive, hold: Hold, aligned: int
    ) -> bytes | memoryview:
        counter = Counter(exchange, hold, self._limit)
        body: Buffer | Parts
        if exchange.begun is not None:
            body, more = exchange.begun, not exchange.is_complete
            body.adopt(counter)
        else:
            part, more = await _next(receive)
            if not more:
                counter.add(len(part))
                exchange.body_read = True
                return part
            size = exchange.content_length
            straight = 0 < size <= STRAIGHT
            body = Buffer(size, counter, aligned) if straight else Parts(counter, aligned)
            body.add(part)
        with exchange.straight(body) if isinstance(body, Buffer) else nullcontext():
            while more:
                part, more = await _next(receive)
                body.add(part)
        exchange.body_read = True
        return body.whole()

    async def _undo(self, coding: bytes, body: bytes | memoryview, hold: Hold) -> list[bytes]:
        """A compressed body's bytes; a bomb is known before it takes more than the budget has."""
        coded = Coded(coding, body, self._limit)
        parts = []
        if len(body) <= _INLINE:
            parts.append(coded.read(_INLINE))
            hold.take(len(parts[0]))
        if coded.done:
            return parts
        loop = asyncio.get_running_loop()
        async with self._undoing:
            while not coded.done:
                part = await loop.run_in_executor(self._undoers, coded.read, _PIECE)
                hold.take(len(part))
                parts.append(part)
        return parts

    def _late(self) -> RequestError:
        if self._traffic.draining:
            return stopping()
        return RequestError(408, f"the body was not complete after {self._seconds:g} s")


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """A part of a body, and whether more come.

    Raises:
        ClientGoneError: none comes.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message.get("body", b""), message.get("more_body", False)
