"""Bodies put together of their parts, once, where they will be read."""

from __future__ import annotations

import numpy as np

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.exchange import Exchange
from parnet_deploy.serve.transport.budget import Hold
from parnet_deploy.serve.transport.limits import too_large

STRAIGHT = 1 << 22
"""Announced bytes up to which room is made for all of a body as soon as its first part is there."""

_ALIGNMENT = 64
"""Bytes: of which a tensor's address is a multiple, so that it need not be copied."""


class Counter:
    """Bytes of a body as they come, against its limit and against the budget of all."""

    def __init__(self, exchange: Exchange, hold: Hold, limit: int) -> None:
        """Nothing has come."""
        self._exchange = exchange
        self._hold = hold
        self._limit = limit

    def add(self, count: int) -> None:
        """So many more have come.

        Raises:
            RequestError: the body is too large (413), or all together are (503).
        """
        self._hold.take(count)
        self._exchange.received += count
        if self._exchange.received > self._limit:
            raise too_large(self._limit)


class Parts:
    """A body whose size is not known before it ends."""

    def __init__(self, counter: Counter, aligned: int) -> None:
        """Nothing has come; byte `aligned` will lie at an address that is a multiple of 64."""
        self._counter = counter
        self._aligned = aligned
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        """Keep a part.

        Raises:
            RequestError: as `Counter.add`.
        """
        self._counter.add(len(part))
        self._parts.append(part)

    def whole(self) -> bytes | memoryview:
        """All of it; what came in one part stays where it is."""
        return joined(self._parts, self._aligned)


class Buffer:
    """A body whose size was announced: its parts go to their place as they come.

    A connection writes them there itself (`left`, `filled`), and wakes nobody before the last one.
    """

    def __init__(self, size: int, counter: Counter, aligned: int) -> None:
        """Make room; it takes memory only as parts come."""
        self._counter = counter
        self._room = room(size, aligned)
        self._filled = 0
        self._error: RequestError | None = None

    def add(self, part: bytes) -> None:
        """Keep a part, or tell why what was written before it is not kept.

        Raises:
            RequestError: as `Counter.add`.
        """
        if self._error is not None:
            raise self._error
        self._counter.add(len(part))
        end = self._filled + len(part)
        self._room[self._filled : end] = part
        self._filled = end

    def put(self, part: bytes) -> bool:
        """Write a part behind the last; whether it may be kept (`filled`)."""
        self._room[self._filled : self._filled + len(part)] = part
        return self.filled(len(part))

    def adopt(self, counter: Counter) -> None:
        """Count what has come by another counter, and what comes.

        Raises:
            RequestError: as `Counter.add`, or something that came before could not be kept.
        """
        if self._error is not None:
            raise self._error
        self._counter = counter
        counter.add(self._filled)

    def left(self) -> memoryview:
        """Where the rest belongs; empty once all is there."""
        return self._room[self._filled :]

    def filled(self, count: int) -> bool:
        """Whether so many bytes, written to `left`, may be kept.

        If not, whoever waits for the body is to be woken: the next `add` tells what is wrong.
        """
        if self._error is not None:
            return False
        try:
            self._counter.add(count)
        except RequestError as exc:
            self._error = exc
            return False
        self._filled += count
        return True

    def whole(self) -> memoryview:
        """All of it."""
        return self._room[: self._filled].toreadonly()


def room(size: int, aligned: int) -> memoryview:
    """So many bytes, of which byte `aligned` lies at an address that is a multiple of 64."""
    array = np.empty(size + _ALIGNMENT, np.uint8)
    start = -(array.ctypes.data + aligned) % _ALIGNMENT
    return array.data[start : start + size]


def joined(parts: list[bytes], aligned: int) -> bytes | memoryview:
    """Parts as one, as in `room`; a single part stays where it is."""
    if len(parts) == 1:
        return parts[0]
    whole = room(sum(map(len, parts)), aligned)
    position = 0
    for part in parts:
        whole[position : position + len(part)] = part
        position += len(part)
    return whole.toreadonly()
