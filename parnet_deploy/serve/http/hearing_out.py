"""uvicorn's server, whose last connections are heard before it closes them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import uvicorn

_LAST_WORD = 1.0
"""Seconds that a client has to ask, whose connection was taken just before the end."""


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals alone: it would raise them again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and hear out those that were taken, before all is closed.

        uvicorn itself would leave those unanswered that the system has taken and it has not, and
        those whose request is still on its way.
        """
        spares = [each.dup() for each in sockets or ()]  # so that they outlive the servers
        for server in self.servers:
            server.close()
        await asyncio.gather(*map(self._adopt, _last_taken(spares)))
        loop = asyncio.get_running_loop()
        end = loop.time() + min(_LAST_WORD, self.config.timeout_graceful_shutdown or _LAST_WORD)
        while loop.time() < end and any(_is_silent(c) for c in self.server_state.connections):
            await asyncio.sleep(_LAST_WORD / 50)
        await super().shutdown(sockets)

    async def _adopt(self, taken: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        made: Any = self.config.http_protocol_class
        protocol = partial(
            made,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=loop,
        )
        with contextlib.suppress(OSError):  # it has gone again
            await loop.connect_accepted_socket(protocol, taken)


def _last_taken(listening: Iterable[socket.socket]) -> list[socket.socket]:
    """Connections that the system has taken from clients and nobody from it; then it takes none."""
    taken = []
    for each in listening:
        each.setblocking(False)
        with contextlib.suppress(OSError):  # there are no more
            while True:
                taken.append(each.accept()[0])
        each.close()
    return taken


def _is_silent(connection: Any) -> bool:
    """Whether nothing has been asked on it yet."""
    return connection.cycle is None
