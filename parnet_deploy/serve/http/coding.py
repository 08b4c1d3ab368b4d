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


def undo(coding: bytes, data: bytes, limit: int) -> bytes:
    """A body as it was before it was compressed.

    Args:
        coding: one of `CODINGS`.
        data: the compressed body.
        limit: bytes that it may have; no more than one beyond them are ever made.

    Raises:
        RequestError: it is larger (413), or damaged, cut short or followed by something (400).
    """
    stream = zlib.decompressobj(wbits=_window(coding, data))
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as exc:
        raise RequestError(400, f"the body is not {_name(coding)}: it is damaged") from exc
    if len(plain) > limit:
        raise RequestError(413, f"the body has more than {limit} bytes when it is decompressed")
    if not stream.eof:
        raise RequestError(400, f"the body's {_name(coding)} stream is cut short")
    if stream.unused_data:
        raise RequestError(400, f"something follows the body's {_name(coding)} stream")
    return plain


def _window(coding: bytes, data: bytes) -> int:
    if coding != b"deflate":
        return _GZIP
    # Some clients leave out the zlib format's header (RFC 1950, section 2.2).
    has_header = len(data) >= 2 and data[0] & 15 == 8 and (data[0] * 256 + data[1]) % 31 == 0
    return _ZLIB if has_header else _RAW


def _name(coding: bytes) -> str:
    return "deflate" if coding == b"deflate" else "gzip"
