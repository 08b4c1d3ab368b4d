"""HTTP/1.1 as a client speaks it that has its requests ready: one socket, kept open."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_ROOM = 1 << 20
_SECONDS = 60.0


class AnswerError(Exception):
    """An answer is not the one that was expected: one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: of the first line.
        fields: header fields, names in lower case.
        body: the rest.
        nanoseconds: from the first byte sent to the last one received.
    """

    status: int
    fields: dict[str, str]
    body: bytes
    nanoseconds: int


class Connection:
    """A connection to 127.0.0.1 that is used again and again."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self._socket = socket.create_connection(("127.0.0.1", port), _SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(_ROOM)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, request: bytes) -> Answer:
        """Send a request and wait for all of its answer.

        Raises:
            AnswerError: it is cut short, has no Content-Length, or is larger than 1 MiB.
            OSError: the connection failed.
        """
        begin = time.perf_counter_ns()
        self._socket.sendall(request)
        received, start, end = 0, 0, _ROOM
        view = memoryview(self._buffer)
        while received < end:
            count = self._socket.recv_into(view[received:])
            if not count:
                raise AnswerError(f"the answer was cut short after {received} bytes")
            received += count
            if not start and (found := self._buffer.find(b"\r\n\r\n", 0, received)) >= 0:
                start = found + 4
                end = start + _length(self._buffer, found)
        nanoseconds = time.perf_counter_ns() - begin
        if received != end:
            raise AnswerError(f"{received - end} bytes came behind the answer")
        status, fields = read_head(bytes(view[: start - 4]))
        return Answer(
            status=status, fields=fields, body=bytes(view[start:end]), nanoseconds=nanoseconds
        )


def request_of(path: str, body: bytes, fields: dict[str, str]) -> bytes:
    """A POST request as bytes.

    Args:
        path: with its query.
        body: what follows the header.
        fields: of the header, beside Host and Content-Length.
    """
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """The status and the fields of a header."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return int(first.split(" ", 2)[1]), {n.strip().lower(): v.strip() for n, _, v in fields}


def _length(buffer: bytearray, header: int) -> int:
    """Content-Length, from a header of so many bytes."""
    fields = bytes(buffer[:header]).lower()
    at = fields.find(b"\r\ncontent-length:")
    if at < 0:
        raise AnswerError("the answer has no Content-Length")
    return int(fields[at + 17 :].split(b"\r\n", 1)[0])
