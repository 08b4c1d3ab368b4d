"""One request and its answer: what its header says, and what came of it."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from typing import Any

from starlette.types import Scope

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.recording import Timing

CLIENT_GONE = 499
"""What the log has where nobody was left to be answered. It never goes over the wire."""

KEY = "parnet_deploy.exchange"
"""Where a scope holds its exchange."""

REFUSED = "parnet_deploy.refused"
"""Where a connection leaves the status that it answered with in the application's place."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")
_WANTED = frozenset(
    (
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"inference-header-content-length",
        b"transfer-encoding",
        b"x-request-id",
    )
)
_LONGEST_PATH = 256

_process = secrets.token_hex(4)
_numbers = itertools.count(1)


class Exchange:
    """One request and its answer.

    Attributes:
        id: the client's ``X-Request-Id`` where it is one, or one of our own.
        began: when its header was complete, by `time.perf_counter`.
        has_body: whether its header says that a body follows.
        body_read: whether all of that was read.
        received: bytes of body that were read.
        status: of the answer; 0 while there is none.
        sent: bytes of the answer's body.
        timing: what the model's part took, where it had one.
    """

    __slots__ = (
        "_fields",
        "_scope",
        "began",
        "body_read",
        "has_body",
        "id",
        "received",
        "sent",
        "status",
        "timing",
    )

    def __init__(self, scope: Scope) -> None:
        """Look at a request's header, once."""
        self._scope = scope
        fields: dict[bytes, bytes] = {n: v for n, v in scope["headers"] if n in _WANTED}
        self._fields = fields
        self.id = _request_id(fields.get(b"x-request-id"))
        self.began = time.perf_counter()
        self.has_body = b"transfer-encoding" in fields or self.content_length > 0
        self.body_read = False
        self.received = 0
        self.status = 0
        self.sent = 0
        self.timing: Timing | None = None
        scope[KEY] = self

    @property
    def content_length(self) -> int:
        """Bytes of body that the header announces; 0 where it does not say."""
        value = self._fields.get(b"content-length", b"0")
        return int(value) if value.isdigit() else 0

    @property
    def content_encoding(self) -> bytes:
        """Codings of the body, in lower case; empty where there is none."""
        return self._fields.get(b"content-encoding", b"").strip().lower()

    @property
    def media_type(self) -> bytes:
        """Type of the body in lower case, without its parameters."""
        return self._fields.get(b"content-type", b"").partition(b";")[0].strip().lower()

    @property
    def authorization(self) -> bytes:
        """What proves who asks."""
        return self._fields.get(b"authorization", b"")

    @property
    def header_length(self) -> int | None:
        """Bytes of JSON before the binary tensors, or None where the whole body is JSON.

        Raises:
            RequestError: it is not a number (400).
        """
        value = self._fields.get(b"inference-header-content-length")
        if value is None:
            return None
        if not value.isdigit() or len(value) > 18:
            raise RequestError(
                400, "Inference-Header-Content-Length is a number of bytes in decimal digits"
            )
        return int(value)

    def facts(self) -> dict[str, Any]:
        """What a log says of it: times in milliseconds, sizes in bytes."""
        client = self._scope.get("client")
        facts: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "method": self._scope["method"],
            "path": self.path,
            "status": self.status,
            "received": self.received,
            "sent": self.sent,
            "ms": _milliseconds(time.perf_counter() - self.began),
        }
        if (timing := self.timing) is not None:
            facts["prepare_ms"] = _milliseconds(timing.prepare)
            facts["queue_ms"] = _milliseconds(timing.queue)
            facts["infer_ms"] = _milliseconds(timing.infer)
        facts["client"] = f"{client[0]}:{client[1]}" if client else ""
        return facts

    @property
    def path(self) -> str:
        """The path as it came, still percent-encoded, so that no line break is in it."""
        raw = self._scope.get("raw_path")
        text = raw.decode("latin-1") if raw else ascii(self._scope["path"])[1:-1]
        return text if len(text) <= _LONGEST_PATH else f"{text[:_LONGEST_PATH]}..."


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that the guard began."""
    exchange: Exchange = scope[KEY]
    return exchange


def _request_id(given: bytes | None) -> str:
    if given is not None and _SANE_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{_process}-{next(_numbers):x}"


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
