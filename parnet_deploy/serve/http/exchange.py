"""One request and its answer: what its header says, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from starlette.types import Scope

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.fields import Headers
from parnet_deploy.serve.transport.asked import Asked

if TYPE_CHECKING:
    from parnet_deploy.serve.http.gathering import Buffer

CLIENT_GONE = 499
"""What the log has where nobody was left to be answered. It never goes over the wire."""

KEY = "parnet_deploy.exchange"
"""Where a scope holds its exchange."""

REFUSED = "parnet_deploy.refused"
"""Where a connection leaves the status that it answered with in the application's place."""

STRAIGHT = "parnet_deploy.straight"
"""Where a scope says where the rest of the body belongs: the system writes it there."""

WIRE = "parnet_deploy.wire"
"""Where a connection leaves what sends an answer in one piece."""

COMPLETE = "parnet_deploy.complete"
"""What a scope has as soon as all of its request has come."""

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
_SINGLE = (
    b"authorization",
    b"content-encoding",
    b"content-type",
    b"inference-header-content-length",
)
"""Of which there is one at most (RFC 9110, section 5.3): of several, a proxy in front may have gone
by another one. Codings make a list, which may stand on several lines; one is undone here."""

_LONGEST_PATH = 256
_DIGITS = 19
"""Of a length: a parser refuses what has more."""


class Place(Protocol):
    """Where a body is put together."""

    def left(self) -> memoryview:
        """Where the rest belongs; empty once all is there."""
        ...

    def filled(self, count: int) -> bool:
        """Whether so many bytes, written to `left`, may be kept."""
        ...


class Wire(Protocol):
    """What sends an answer in one piece."""

    def is_free(self) -> bool:
        """Whether it may be sent so."""
        ...

    def send(self, status: int, fields: Headers, body: bytes) -> None:
        """Send it."""
        ...


class Exchange(Asked):
    """One request and its answer.

    Attributes:
        has_body: whether its header says that a body follows.
        body_read: whether all of that was read.
        begun: the body, where a connection has begun to put it together.
        status: of the answer; 0 while there is none.
    """

    __slots__ = (
        "_fields",
        "_has_repeated",
        "_scope",
        "begun",
        "body_read",
        "has_body",
        "status",
    )

    def __init__(self, scope: Scope) -> None:
        """Look at a request's header, once."""
        wanted = [(name, value) for name, value in scope["headers"] if name in _WANTED]
        fields: dict[bytes, bytes] = dict(wanted)
        super().__init__(fields.get(b"x-request-id", b"").decode("latin-1"))
        self._scope = scope
        self._fields = fields
        self._has_repeated = len(fields) < len(wanted)
        self.has_body = b"transfer-encoding" in fields or self.content_length > 0
        self.body_read = False
        self.begun: Buffer | None = None
        self.status = 0
        scope[KEY] = self

    @property
    def is_complete(self) -> bool:
        """Whether all of the body has come, so that it need not be waited for."""
        return COMPLETE in self._scope

    @property
    def wire(self) -> Wire | None:
        """What would send an answer in one piece at this moment."""
        wire: Wire | None = self._scope.get(WIRE)
        return wire if wire is not None and wire.is_free() else None

    @property
    def is_plain(self) -> bool:
        """Whether the body is as long as it says, and not coded."""
        fields = self._fields
        return not (b"transfer-encoding" in fields or b"content-encoding" in fields)

    @property
    def repeated(self) -> str | None:
        """A field that came more than once, though there is one at most."""
        if not self._has_repeated:
            return None
        names = [name for name, _ in self._scope["headers"]]
        return next((name.decode() for name in _SINGLE if names.count(name) > 1), None)

    @property
    def content_length(self) -> int:
        """Bytes of body that the header announces; 0 where it does not say."""
        value = self._fields.get(b"content-length", b"0")
        if not value.isdigit():
            return 0
        digits = value.lstrip(b"0")  # Python makes no number of very many
        return int(digits[:_DIGITS] or b"0")

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

    @contextmanager
    def straight(self, place: Place) -> Iterator[None]:
        """While the block runs, the connection has the rest of the body written to its place.

        Nobody is woken before all of it is there, or cannot be kept.
        """
        self._scope[STRAIGHT] = place
        try:
            yield
        finally:
            del self._scope[STRAIGHT]

    def facts(self) -> dict[str, Any]:
        """What a log says of it: times in milliseconds, sizes in bytes."""
        client = self._scope.get("client")
        return self.line(
            method=self.method,
            path=self.path,
            status=self.status,
            client=f"{client[0]}:{client[1]}" if client else "",
        )

    @property
    def method(self) -> str:
        """Such as ``POST``."""
        method: str = self._scope["method"]
        return method

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
