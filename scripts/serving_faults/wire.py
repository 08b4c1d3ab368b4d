"""Raw requests over a socket, and answers that have to be legal HTTP."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import h11

SECONDS = 20.0
"""For which an answer is waited for."""

_PART = 1 << 16


class WireError(Exception):
    """What came is no answer of HTTP, or came too late: one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        status: its status.
        headers: its fields, names in lower case.
        body: its body.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str | None:
        """The sentence of a refusal; None where its body is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return None
        if isinstance(found, dict) and isinstance(found.get("error"), str):
            return found["error"] or None
        return None


class Connection:
    """A connection to a server on this machine."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""

    def __enter__(self) -> Self:
        """Close it at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def send(self, parts: bytes | Iterable[bytes]) -> int:
        """Send until all is sent, the server has answered, or it takes too long to take it.

        Returns:
            Bytes that were sent.
        """
        sent = 0
        end = time.monotonic() + SECONDS
        for part in [parts] if isinstance(parts, bytes) else parts:
            if self.has_answer() or time.monotonic() > end:
                return sent
            try:
                self.socket.sendall(part)
            except (ConnectionError, TimeoutError):
                return sent
            sent += len(part)
        return sent

    def has_answer(self) -> bool:
        """Whether something can be read, be it the end."""
        return self.readable(0)

    def has_more(self, seconds: float) -> bool:
        """Whether another answer begins, or the connection ends, within some seconds."""
        return bool(self._left) or self.readable(seconds)

    def readable(self, seconds: float) -> bool:
        """Whether something can be read within some seconds."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def answer(self, method: str = "GET", *, seconds: float = SECONDS) -> Answer | None:
        """The next answer; None where the connection ended before its first byte.

        Args:
            method: of the request that it answers: a HEAD's has no body.
            seconds: for which it is waited for.

        Raises:
            WireError: it is not legal, is cut short, or does not come in time.
        """
        reader = _reader(method)
        self.socket.settimeout(seconds)
        try:
            found = self._read(reader)
        except h11.RemoteProtocolError as exc:
            raise WireError(f"the answer is not legal HTTP: {exc}") from exc
        except TimeoutError as exc:
            raise WireError(f"no answer within {seconds:g} s") from exc
        self._left = reader.trailing_data[0]
        return found

    def ends(self, seconds: float) -> bool:
        """Whether the server ends it within some seconds, whatever it sends before."""
        self.socket.settimeout(seconds)
        try:
            while self._receive():
                pass
        except TimeoutError:
            return False
        return True

    def _read(self, reader: h11.Connection) -> Answer | None:
        if self._left:
            reader.receive_data(self._left)
        started = bool(self._left)
        head: h11.Response | None = None
        body = bytearray()
        while not isinstance(event := reader.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
            if event is h11.NEED_DATA:
                data = self._receive()
                if not data and not started:
                    return None
                started = True
                reader.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
        if head is None:
            raise WireError("the answer is cut short")
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        return Answer(status=head.status_code, headers=headers, body=bytes(body))

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(_PART)
        except ConnectionError:
            return b""


def _reader(method: str) -> h11.Connection:
    reader = h11.Connection(h11.CLIENT)
    asked = method if method in ("HEAD", "CONNECT") else "GET"
    target = "x:1" if asked == "CONNECT" else "/"
    reader.send(h11.Request(method=asked, target=target, headers=[("host", "x")]))
    reader.send(h11.EndOfMessage())
    return reader


def head(method: str, path: str, *fields: str, host: str = "Host: x") -> bytes:
    """A request's header."""
    lines = [f"{method} {path} HTTP/1.1", host, *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def request(method: str, path: str, body: bytes = b"", *fields: str) -> bytes:
    """A request with its Content-Length."""
    return head(method, path, *fields, f"Content-Length: {len(body)}") + body


def chunked(parts: Iterable[bytes]) -> Iterator[bytes]:
    """A body of chunks."""
    for part in parts:
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def tensors(path: str, message: Any, *tail: bytes, length: object = None) -> bytes:
    """An inference request: JSON, and bytes behind it.

    Args:
        path: where to.
        message: the JSON, as values.
        tail: bytes of tensors.
        length: what Inference-Header-Content-Length says; None: the truth.
    """
    text = json.dumps(message).encode()
    said = len(text) if length is None else length
    body = text + b"".join(tail)
    return request("POST", path, body, f"Inference-Header-Content-Length: {said}")


def ask(port: int, *parts: bytes, method: str = "GET", seconds: float = SECONDS) -> Answer | None:
    """Send on a connection of its own, and read one answer."""
    with contextlib.closing(Connection(port)) as connection:
        connection.send(parts)
        return connection.answer(method, seconds=seconds)
