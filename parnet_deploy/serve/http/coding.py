"""Content codings undone: gzip and deflate, in bounded memory (RFC 9110, section 8.4.1)."""

from __future__ import annotations

import zlib

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.refusal import HttpError

CODINGS = (b"gzip", b"x-gzip", b"deflate")
IDENTITY = (b"", b"identity")

_GZIP = 31  # zlib's window bits: 15, and 16 for gzip's header
_ZLIB = 15
_RAW = -15


def check_coding(coding: bytes) -> None:
    """Refuse a coding that is not known, before the body is read.

    Raises:
        HttpError: it is not (415).
    """
    if coding not in IDENTITY and coding not in CODINGS:
        raise HttpError(
            415,
            "this Content-Encoding is not known; send gzip, deflate, or the body as it is",
            headers=[(b"accept-encoding", b"gzip, deflate, identity")],
        )


class Coded:
    """A compressed body, undone piece by piece.

    Attributes:
        done: whether all of it has been read.
    """

    def __init__(self, coding: bytes, data: bytes | memoryview, limit: int) -> None:
        """Nothing is undone yet.

        Args:
            coding: one of `CODINGS`.
            data: the compressed body.
            limit: bytes that it may have; no more than one beyond them are ever made.
        """
        self.done = False
        self._stream = zlib.decompressobj(wbits=_window(coding, data))
        self._left: bytes | memoryview = data
        self._name = "deflate" if coding == b"deflate" else "gzip"
        self._limit = limit
        self._made = 0

    def read(self, most: int) -> bytes:
        """The next bytes: `most` of them, or all that are left.

        Raises:
            RequestError: it is larger (413), or damaged, cut short or followed by something (400).
        """
        asked = min(most, self._limit + 1 - self._made)
        try:
            part = self._stream.decompress(self._left, asked)
        except zlib.error as exc:
            raise RequestError(400, f"the body is not {self._name}: it is damaged") from exc
        self._left = self._stream.unconsumed_tail
        self._made += len(part)
        self.done = self._stream.eof
        if self._made > self._limit:
            raise RequestError(
                413, f"the body has more than {self._limit} bytes when it is decompressed"
            )
        if self.done and self._stream.unused_data:
            raise RequestError(400, f"something follows the body's {self._name} stream")
        if not self.done and len(part) < asked:
            raise RequestError(400, f"the body's {self._name} stream is cut short")
        return part


def _window(coding: bytes, data: bytes | memoryview) -> int:
    if coding != b"deflate":
        return _GZIP
    # Some clients leave out the zlib format's header (RFC 1950, section 2.2).
    has_header = len(data) >= 2 and data[0] & 15 == 8 and (data[0] * 256 + data[1]) % 31 == 0
    return _ZLIB if has_header else _RAW
