"""Answers as they leave: in one piece, and so that a client that is still sending can read them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

LINGER = 1.0
"""Seconds for which what a client still sends is let go."""

_SMALL = 65_536
"""Bytes that are sooner copied behind a head than written by themselves."""


class AnswerTransport(asyncio.Transport):
    """A transport that sends a head together with its body, and does not hang up on a sender.

    uvicorn writes an answer's head and its body one after the other: two system calls, and two
    packets, of which each wakes the client.

    A socket that is closed while bytes wait in it to be read answers with a reset, and that takes
    away from the client what it has not read yet: the sentence that says what was wrong. So `close`
    ends our side first where the client is still sending. See RFC 9112, section 9.6.
    """

    def __init__(self, transport: asyncio.Transport, is_sending: Callable[[], bool]) -> None:
        """Wrap a transport.

        Args:
            transport: the connection's.
            is_sending: whether the client is in the middle of a message.
        """
        super().__init__()
        self._transport = transport
        self._is_sending = is_sending
        self._closing = False
        self._head: bytes | bytearray | memoryview | None = None

    def close(self) -> None:
        """Send what is written, and close at once or when the client has done so."""
        if self._closing:
            return
        self.flush()
        self._closing = True
        if self._transport.is_closing() or not self._is_sending():
            self._transport.close()
            return
        with contextlib.suppress(OSError):  # it has hung up in this moment
            self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER, self._transport.abort)

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing or self._transport.is_closing()

    def abort(self) -> None:
        """Close without sending what is written."""
        self._closing = True
        self._transport.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; a head is sent with what follows it, or by `flush`."""
        if self._head is None and data[:9] == b"HTTP/1.1 " and data[9:12] != b"100":
            self._head = data
            return
        head, self._head = self._head, None
        if head is None:
            self._transport.write(data)
        else:
            self.write_together(head, data)

    def write_together(
        self, head: bytes | bytearray | memoryview, data: bytes | bytearray | memoryview
    ) -> None:
        """Send a head and all that follows it."""
        if len(data) <= _SMALL:
            self._transport.write(b"".join((head, data)))
        else:
            self._transport.writelines((head, data))

    def flush(self) -> None:
        """Send a head that nothing follows."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several."""
        self._transport.writelines(list_of_data)

    def get_write_buffer_size(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Take nothing from the client."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what it sends."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the socket."""
        return self._transport.get_extra_info(name, default)
