"""uvicorn's server, whose last connections are heard before it closes them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import uvicorn

_LAST_WORD = 1.0
"""Seconds that a client has to ask, whose connection was taken just before the end."""

_HANDSHAKE = 0.02
"""Seconds for connections that are half made when no more are taken: a round trip."""

_SO_ATTACH_FILTER = 26  # Linux's; Python has no name for it
_NO_SYN = (
    (0x30, 0, 0, 13),  # A = the byte of flags in the TCP header
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # a SYN alone asks for a connection:
    (0x06, 0, 0, 0),  # it is dropped,
    (0x06, 0, 0, 0xFFFFFFFF),  # and everything else is kept
)
"""A program of the system's packet filter: code, jumps if true and if false, operand. Reference:
Linux's Documentation/networking/filter.rst."""


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
        overlooked = [_pass_over_new(each) for each in spares]
        if any(overlooked):
            await asyncio.sleep(_HANDSHAKE)
        for server in self.servers:
            server.close()
        await asyncio.gather(*map(self._adopt, _last_taken(spares)))
        loop = asyncio.get_running_loop()
        end = loop.time() + min(_LAST_WORD, self.config.timeout_graceful_shutdown or _LAST_WORD)
        while loop.time() < end and any(map(_is_silent, self.server_state.connections)):
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


def _pass_over_new(listening: socket.socket) -> bool:
    """Have the system overlook who asks for a connection from now on; the others are completed.

    To close a socket closes what was connected since it was last looked at, and clients that ask
    as fast as they can hit that moment one time in six. Who is overlooked asks again a second
    later, and is refused.

    Returns:
        Whether the system has such a filter; else the moment stays.
    """
    if sys.platform != "linux":
        return False
    code = b"".join(struct.pack("=HBBI", *each) for each in _NO_SYN)
    program = ctypes.create_string_buffer(code, len(code))
    filtered = struct.pack("@HP", len(_NO_SYN), ctypes.addressof(program))
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)
    except OSError:
        return False
    return True


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
    """Whether nothing has been asked on it yet; the connections are ours (`connection`)."""
    silent: bool = connection.is_silent
    return silent
