"""httptools' parser, and what it leaves out: the body of a request that asks for an upgrade."""

from __future__ import annotations

from typing import Protocol

import httptools

FRAMING = (b"content-length", b"transfer-encoding")
"""What says how long a body is (RFC 9112, section 6.3)."""


class Told(Protocol):
    """Who is told of a body."""

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        ...

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        ...

    def on_message_complete(self) -> None:
        """It ends."""
        ...


def new_parser(protocol: object) -> httptools.HttpRequestParser:
    """A parser at the beginning of a request, made as uvicorn makes its own."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def framing_of(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields that say that a body follows; none where none does. Names are in lower case."""
    return [(n, v) for n, v in headers if n in FRAMING and v.strip(b" \t0")]


class BodyParser:
    """Parses one body, of a request whose header has been parsed, and nothing that follows it.

    Clients offer an upgrade with their first request (Java's, and curl with ``--http2``), and a
    server may pass it over (RFC 9110, section 7.8). httptools takes what follows such a header for
    bytes of the other protocol.
    """

    def __init__(self, framing: list[tuple[bytes, bytes]], told: Told) -> None:
        """Parse for `told` a body that is announced by these fields."""
        self._told = told
        self._ended = False
        self._parser = httptools.HttpRequestParser(self)
        lines = b"".join(b"%s: %s\r\n" % field for field in framing)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % lines)

    def feed_data(self, data: bytes | memoryview) -> None:
        """Parse some of it.

        Raises:
            HttpParserError: it is none.
        """
        if self._ended:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._ended:
                raise

    def should_upgrade(self) -> bool:
        """Not any more."""
        return False

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        if not self._ended:
            self._told.on_chunk_header()

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        if not self._ended:
            self._told.on_body(body)

    def on_message_complete(self) -> None:
        """It ends."""
        if not self._ended:
            self._ended = True
            self._told.on_message_complete()
