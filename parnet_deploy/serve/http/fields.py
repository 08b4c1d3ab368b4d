"""Header fields that answers have in common, and a header as it goes over the wire."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from parnet_deploy.serve.protocol.response import EncodedResponse
from parnet_deploy.serve.recording import Timing

Field = tuple[bytes, bytes]
Headers = list[Field]
"""Header fields as ASGI has them, names in lower case."""

CLOSE = (b"connection", b"close")

POLICY = b"content-security-policy"
SECURE: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (POLICY, b"default-src 'none'; frame-ancestors 'none'"),
]
"""What every answer says, unless its route says otherwise."""


def completed(given: Headers, request_id: str) -> Headers:
    """A route's header fields, and what every answer says besides.

    Args:
        given: the route's.
        request_id: what the request is called in the log.
    """
    said = {name for name, _ in given}
    others = [field for field in SECURE if field[0] not in said]
    return [(b"x-request-id", request_id.encode()), *given, *others]


def content_of(answer: EncodedResponse) -> Headers:
    """What the body of an inference's answer is."""
    headers = [(b"content-type", answer.content_type.encode())]
    if answer.header_length is not None:
        headers.append((b"inference-header-content-length", b"%d" % answer.header_length))
    return headers


def of_answer(body: bytes, timing: Timing) -> Headers:
    """An answer's length, and what its parts took (Server-Timing: W3C; in milliseconds)."""
    parts = (timing.prepare * 1e3, timing.queue * 1e3, timing.infer * 1e3)
    return [
        (b"content-length", b"%d" % len(body)),
        (b"server-timing", b"prepare;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f" % parts),
    ]


def raw_header(status: int, fields: Iterable[Field]) -> bytes:
    """A status line, header fields and the empty line behind them (RFC 9112, section 2.1)."""
    lines = [_status_lines[status], *map(b": ".join, fields), b"", b""]
    return b"\r\n".join(lines)


_status_lines = {each.value: f"HTTP/1.1 {each.value} {each.phrase}".encode() for each in HTTPStatus}
