"""Clients that go: their request's work is cancelled, so that it costs nothing more."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive

_PATIENCE = 0.005
"""Seconds. A request that is answered sooner could not have been spared anything; watching costs
a task, and most requests never need one."""


class ClientGoneError(Exception):
    """Nobody is there any more to be answered."""


class Watch:
    """While the block runs, the client's going cancels it.

    Raises:
        ClientGoneError: it has gone; out of the block, in place of the cancellation.
    """

    __slots__ = ("_gone", "_receive", "_task", "_timer", "_watcher")

    def __init__(self, receive: Receive) -> None:
        """Watch what `receive` says; the body has been read."""
        self._receive = receive
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        """Begin to watch, in a while."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a client is watched from a task")
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Watch no longer."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and kind is not None and issubclass(kind, asyncio.CancelledError):
            self._task.uncancel()
            raise ClientGoneError from None

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()
