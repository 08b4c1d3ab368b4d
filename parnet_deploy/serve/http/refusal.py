"""Errors as answers: one JSON object with one sentence, whatever the status."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.fields import CLOSE, Headers, raw_header
from parnet_deploy.serve.transport.key import WrongKeyError

JSON = b"application/json"

_CHALLENGE = b'Bearer realm="parnet-deploy"'
_WRONG = b', error="invalid_token"'
"""What is to be sent, and that what was sent is not it (RFC 6750, section 3)."""

NOTHING_HERE = "there is nothing at this path; GET /v2 says what this server is"


class HttpError(RequestError):
    """A request that HTTP itself refuses, before any model is asked.

    Attributes:
        headers: what the answer has to say besides, such as ``Allow``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        retry_after: int | None = None,
    ) -> None:
        """Refuse with a status, a reason and header fields."""
        super().__init__(status, message, retry_after=retry_after)
        self.headers = tuple(headers)


def error_body(message: str) -> bytes:
    """``{"error": message}``."""
    return msgspec.json.encode({"error": message})


def error_answer(error: RequestError) -> tuple[Headers, bytes]:
    """Header fields and body of a refusal's answer."""
    body = error_body(str(error))
    headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(body))]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if isinstance(error, HttpError):
        headers += error.headers
    elif isinstance(error, WrongKeyError):
        headers.append((b"www-authenticate", _CHALLENGE + _WRONG * error.was_given))
    return headers, body


def raw_answer(error: RequestError) -> bytes:
    """A refusal as it goes over the wire, where no application is there to send it."""
    headers, body = error_answer(error)
    return raw_header(error.status, (*headers, CLOSE)) + body
