"""What is under way on a server, and whether more may come."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import contextmanager


class Traffic:
    """What is under way. All of it is seen and changed on the event loop's thread.

    Attributes:
        active: requests whose header is complete and whose answer is not.
        draining: whether the server is about to stop: nothing new is begun.
        connections: connections that are open.
        turned_away: connections beyond the maximum, which are being told so.
        answers: how many there were, by status, or by the name of one.
        tasks: one for each request whose header is complete, those included that have not begun.
    """

    def __init__(self) -> None:
        """Nothing is under way."""
        self.active = 0
        self.draining = False
        self.connections = 0
        self.turned_away = 0
        self.answers: Counter[int | str] = Counter()
        self.tasks: Sized = ()
        self._reading: set[asyncio.Timeout] = set()

    def is_lone(self) -> bool:
        """Whether the request that asks is the only one."""
        return len(self.tasks) == 1

    @contextmanager
    def reading(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """While a body is read: its deadline comes at once where the server drains."""
        self._reading.add(deadline)
        if self.draining:
            _end(deadline)
        try:
            yield
        finally:
            self._reading.discard(deadline)

    def drain(self) -> None:
        """Begin nothing new; bodies that are not complete are not waited for."""
        self.draining = True
        for deadline in self._reading:
            _end(deadline)

    async def quiet(self) -> None:
        """Wait until every answer has been sent."""
        while self.active:
            await asyncio.sleep(0.01)


def _end(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(asyncio.get_running_loop().time())
